"""Checkpoints to time merges on: random, of the shape and size that docs/merging.md names."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dualign.checkpoints.dtypes import DTYPE_NAMES, from_float
from dualign.checkpoints.header import TensorSpec, write_header

CONFIG = {
    "architectures": ["SmolLM3ForCausalLM"],
    "model_type": "smollm3",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def make_inputs(folder: Path, count: int, *, stored: str = "BF16", **sizes: int) -> list[Path]:
    """A base and `count` variants of it (base + N(0, 1e-3)), one file each; made once.

    `sizes` replaces keys of CONFIG.
    """
    config = {**CONFIG, **sizes, "dtype": DTYPE_NAMES[stored]}
    names = ["base", *(f"m{i}" for i in range(1, count + 1))]
    folders = [folder / name for name in names]

    def make(number: int) -> None:
        path = folders[number]
        if not (path / "config.json").is_file():
            path.mkdir(parents=True, exist_ok=True)
            _write(path / "model.safetensors", _tensors(config, stored), number)
            (path / "config.json").write_text(json.dumps(config, indent=2))

    with ThreadPoolExecutor() as pool:
        list(pool.map(make, range(len(folders))))
    return folders


def _tensors(config: dict[str, object], stored: str) -> list[TensorSpec]:
    hidden, inner, vocab = (
        int(str(config[key])) for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    shapes = {
        "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden // 4, hidden),
        "self_attn.v_proj": (hidden // 4, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    named_shapes = [("model.embed_tokens", (vocab, hidden)), ("model.norm", (hidden,))]
    for layer in range(int(str(config["num_hidden_layers"]))):
        named_shapes += [(f"model.layers.{layer}.{name}", shape) for name, shape in shapes.items()]
    return [TensorSpec(f"{name}.weight", shape, stored) for name, shape in named_shapes]


def _write(file: Path, tensors: list[TensorSpec], number: int) -> None:
    with file.open("wb") as stream:
        stream.write(write_header(tensors))
        for place, tensor in enumerate(tensors):
            base = np.random.Generator(np.random.Philox(key=place)).standard_normal(
                tensor.size, np.float32
            )
            base *= np.float32(0.02)
            if number:
                change = np.random.Generator(np.random.Philox(key=(number << 32) + place))
                base += change.standard_normal(tensor.size, np.float32) * np.float32(1e-3)
            stream.write(from_float(base, tensor.dtype).tobytes())
