"""Tensors of a GGUF file, read from those of the checkpoint.

transformers rotates the first half of a head against the second; llama.cpp, for llama and smollm3,
rotates each number against the next. So the rows of q and k are interleaved: (head, half, i)
becomes (head, i, half). A head of four rows 0 1 2 3 becomes 0 2 1 3.
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
class GGUFTensor:
    """One tensor of the file."""

    name: str
    """GGUF name, such as blk.0.attn_q.weight"""
    shape: tuple[int, ...]
    read: Callable[[], Array]
    """return the whole tensor in float32"""
    source: str = ""
    """name in the checkpoint; "" for what no parameter holds"""
    heads: int = 0
    """heads whose rows are interleaved; 0 for rows in the checkpoint's order"""

    def restore(self, values: Array) -> Array:
        """Put rows of the file into the checkpoint's order."""
        return _deinterleave(values, self.heads) if self.heads else values


def tensors_of(weights: Weights, architecture: Architecture) -> list[GGUFTensor]:
    """Return all tensors, in the order of the file.

    Raises:
        CheckpointError: a tensor is missing, or llama.cpp has no place for one.
    """
    import gguf

    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(kind, architecture.blocks)
    expected = _expected(architecture)
    _require_all(weights, expected, architecture)
    tensors = []
    for name in sorted(weights.entries, key=_order):
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise CheckpointError(f"{weights.folders[0]}: {name}: {architecture.name} has no place")
        tensors.append(_tensor(weights, name, gguf_name, architecture))
    if architecture.rope.get("rope_type") == "llama3":
        factors = llama3_factors(architecture)
        tensors.append(GGUFTensor("rope_freqs.weight", factors.shape, lambda: factors))
    return tensors


def interleave(rows: Array, heads: int) -> Array:
    """Reorder rows (head, half, i, ...) to (head, i, half, ...)."""
    parts = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(rows.shape)


def _deinterleave(rows: Array, heads: int) -> Array:
    """Reorder rows (head, i, half, ...) to (head, half, i, ...)."""
    parts = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(rows.shape)


def llama3_factors(architecture: Architecture) -> Array:
    """Return the divisor of each rotary frequency in Llama 3.1, float32 of head_dim / 2.

    It is 1 for short wavelengths and `factor` for long ones; in between, the frequency itself is
    interpolated.
    """
    rope, dim = architecture.rope, architecture.head_dim
    frequencies = rope["rope_theta"] ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = np.clip((turns - low) / (high - low), 0, 1)
    factors: Array = (1 / ((1 - share) / rope["factor"] + share)).astype(np.float32)
    return factors


def _tensor(weights: Weights, name: str, gguf_name: str, architecture: Architecture) -> GGUFTensor:
    interleaved = {"q_proj": architecture.heads, "k_proj": architecture.kv_heads}
    heads = interleaved.get(name.split(".")[-2], 0) if architecture.interleaved else 0

    def read() -> Array:
        values = read_whole(weights, name)
        return interleave(values, heads) if heads else values

    return GGUFTensor(gguf_name, weights.entries[name].shape, read, name, heads)


def _expected(architecture: Architecture) -> set[str]:
    modules = _BLOCK + (_HEAD_NORMS if architecture.name == "qwen3" else ())
    names = {
        f"model.layers.{block}.{module}.weight"
        for block in range(architecture.blocks)
        for module in modules
    }
    return names | {"model.embed_tokens.weight", "model.norm.weight"}


def _require_all(weights: Weights, expected: set[str], architecture: Architecture) -> None:
    folder = weights.folders[0]
    missing = sorted(expected - set(weights.entries))
    if missing:
        raise CheckpointError(
            f"{folder}: {missing[0]} is missing ({len(missing)} missing tensors in all)"
        )
    for name in sorted(set(weights.entries) - expected - {HEAD}):
        module = name.removesuffix(".bias").rsplit(".", 1)[-1]
        if not name.endswith(".bias") or module not in architecture.biased:
            raise CheckpointError(
                f"{folder}: {name}: llama.cpp's {architecture.name} has no such tensor, so the file "
                "would be another model"
            )
    embedding = weights.entries[embedding_name(weights.entries) or ""]
    shape = (architecture.vocab_size, architecture.hidden)
    if embedding.shape != shape:
        raise CheckpointError(
            f"{folder}: the embedding is {embedding.shape}, config.json says {shape}"
        )


def _order(name: str) -> tuple[int, str]:
    """Sort key: embedding, blocks by number, then norm and head."""
    parts = name.split(".")
    block = next((int(part) for part in parts if part.isdecimal()), None)
    if block is not None:
        return block, name
    return (-1 if "embed" in name else 1 << 30), name
