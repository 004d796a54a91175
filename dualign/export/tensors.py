"""The tensors of a GGUF file: which of the checkpoint's each is made from, and in what type.

transformers rotates the first half of a head against the second; llama.cpp, for llama and smollm3,
each number against the next. So the rows of q and k are interleaved: (head, half, i) becomes
(head, i, half).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dualign.checkpoints.checkpoint import HEAD, Weights, embedding_name, read_whole
from dualign.checkpoints.dtypes import Array
from dualign.errors import CheckpointError
from dualign.export.architecture import Architecture

_BLOCK = (
    "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the file."""

    name: str
    """in GGUF, such as blk.0.attn_q.weight"""
    shape: tuple[int, ...]
    read: Callable[[], Array]
    """the whole of it, float32"""


def tensors_of(weights: Weights, architecture: Architecture) -> list[Tensor]:
    """Every tensor, in the order of the file.

    Raises:
        CheckpointError: one is missing, or there is one that llama.cpp has no place for.
    """
    import gguf

    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(kind, architecture.blocks)
    expected = _expected(architecture)
    _require_all(weights, expected, architecture)
    found = []
    for name in sorted(weights.entries, key=_order):
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if place is None:
            raise CheckpointError(f"{weights.folders[0]}: {name}: {architecture.name} has no place")
        found.append(_tensor(weights, name, place, architecture))
    if architecture.rope.get("rope_type") == "llama3":
        factors = llama3_factors(architecture)
        found.append(Tensor("rope_freqs.weight", factors.shape, lambda: factors))
    return found


def interleaved(rows: Array, heads: int) -> Array:
    """Rows (head, half, i, ...) as (head, i, half, ...)."""
    parts = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(rows.shape)


def llama3_factors(architecture: Architecture) -> Array:
    """What Llama 3.1 divides each frequency by, float32 of head_dim / 2: 1 for short wavelengths,
    `factor` for long ones, and between them what a line between the frequencies gives.
    """
    rope, dim = architecture.rope, architecture.head_dim
    frequencies = rope["rope_theta"] ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    factors: Array = (1 / ((1 - kept) / rope["factor"] + kept)).astype(np.float32)
    return factors


def _tensor(weights: Weights, name: str, place: str, architecture: Architecture) -> Tensor:
    heads = {"q_proj": architecture.heads, "k_proj": architecture.kv_heads}
    module = name.split(".")[-2]

    def read() -> Array:
        values = read_whole(weights, name)
        if architecture.paired and module in heads:
            return interleaved(values, heads[module])
        return values

    return Tensor(place, weights.entries[name].shape, read)


def _expected(architecture: Architecture) -> set[str]:
    modules = _BLOCK + (_HEAD_NORMS if architecture.name == "qwen3" else ())
    names = {
        f"model.layers.{block}.{module}.weight"
        for block in range(architecture.blocks)
        for module in modules
    }
    return names | {"model.embed_tokens.weight", "model.norm.weight"}


def _require_all(weights: Weights, expected: set[str], architecture: Architecture) -> None:
    place = weights.folders[0]
    missing = sorted(expected - set(weights.entries))
    if missing:
        raise CheckpointError(
            f"{place}: {missing[0]} is missing; {len(missing)} tensors in all are"
        )
    for name in sorted(set(weights.entries) - expected - {HEAD}):
        module = name.removesuffix(".bias").rsplit(".", 1)[-1]
        if not name.endswith(".bias") or module not in architecture.biased:
            raise CheckpointError(
                f"{place}: {name}: llama.cpp's {architecture.name} has no such tensor, so the file "
                "would be another model"
            )
    embedding = weights.entries[embedding_name(weights.entries) or ""]
    wanted = (architecture.vocab_size, architecture.hidden)
    if embedding.shape != wanted:
        raise CheckpointError(
            f"{place}: the embedding is {embedding.shape}, config.json says {wanted}"
        )


def _order(name: str) -> tuple[int, str]:
    """Embedding, blocks by number, then norm and head."""
    parts = name.split(".")
    block = next((int(part) for part in parts if part.isdecimal()), None)
    if block is not None:
        return block, name
    return (-1 if "embed" in name else 1 << 30), name
