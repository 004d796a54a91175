"""Small checkpoints written byte by byte, without torch, so that any of them can be made wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dualign.checkpoints.checkpoint import Checkpoint, read_whole
from dualign.checkpoints.dtypes import from_float
from dualign.checkpoints.header import TensorSpec, write_header

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "vocab_size": 12,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}
TOKENS = {"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}


def shapes(layers: int = 4) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (12, 8),
        "model.norm.weight": (8,),
    }
    for layer in range(layers):
        found[f"model.layers.{layer}.mlp.up_proj.weight"] = (16, 8)
        found[f"model.layers.{layer}.self_attn.q_proj.weight"] = (8, 8)
    return found


def tensors(seed: int, layers: int = 4) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        name: generator.normal(0, 0.5, shape).astype(np.float32)
        for name, shape in shapes(layers).items()
    }


def write_model(
    folder: Path,
    seed: int = 0,
    *,
    values: dict[str, np.ndarray] | None = None,
    dtype: str = "F32",
    tokenizer: dict[str, int] | None = TOKENS,
    template: str | None = "{{ messages }}",
    layers: int = 4,
    **config: Any,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    values = tensors(seed, layers) if values is None else values
    write_file(folder / "model.safetensors", values, dtype)
    whole = {**CONFIG, "num_hidden_layers": layers, **config}
    write_json(
        folder / "config.json", {key: item for key, item in whole.items() if item is not None}
    )
    if tokenizer is not None:
        write_json(folder / "tokenizer.json", {"model": {"vocab": tokenizer}, "added_tokens": []})
        write_json(folder / "tokenizer_config.json", {"eos_token": "</s>"})
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def write_file(file: Path, values: dict[str, np.ndarray], dtype: str = "F32") -> None:
    planned = [TensorSpec(name, value.shape, dtype) for name, value in values.items()]
    data = b"".join(from_float(value, dtype).tobytes() for value in values.values())
    file.write_bytes(write_header(planned) + data)


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value))


def change_json(file: Path, **values: Any) -> None:
    write_json(file, {**json.loads(file.read_text()), **values})


def shard(folder: Path, parts: int) -> Path:
    """The same model in several files."""
    checkpoint = Checkpoint(folder)
    names = sorted(checkpoint.entries)
    weight_map = {}
    for part in range(parts):
        file = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        mine = names[part::parts]
        write_file(folder / file, {name: read_whole(checkpoint, name) for name in mine})
        weight_map |= dict.fromkeys(mine, file)
    (folder / "model.safetensors").unlink()
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    return folder


def read(folder: Path) -> dict[str, np.ndarray]:
    checkpoint = Checkpoint(folder)
    return {name: read_whole(checkpoint, name) for name in checkpoint.entries}
