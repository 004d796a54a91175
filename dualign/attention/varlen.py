"""Attention of all segments in one kernel of CUDA: torch's own, or an installed flash-attention.

Both are FlashAttention (arXiv 2307.08691): 16-bit, causal aligned at the last query and key.

Shapes: N heads, G heads of keys, T positions, K keys of all segments, H size of a head.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor

from dualign.attention.scores import Scores
from dualign.attention.segments import Segments

_LARGEST_HEAD = 256
_HALF = (torch.float16, torch.bfloat16)
_OLDEST_CARD = (8, 0)  # Ampere


def fits_kernels(query_1NTH: Tensor, value_1GTH: Tensor) -> bool:
    """Whether the kernels take tensors of this device, type and size."""
    size = query_1NTH.shape[-1]
    return (
        query_1NTH.is_cuda
        and torch.version.hip is None
        and torch.cuda.get_device_capability(query_1NTH.device) >= _OLDEST_CARD
        and query_1NTH.dtype in _HALF
        and size == value_1GTH.shape[-1]
        and size % 8 == 0
        and size <= _LARGEST_HEAD
    )


@cache
def torch_has_varlen() -> bool:
    """Whether torch's kernel is there, with windows and grouped heads (2.11 and later)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"window_size", "enable_gqa", "scale"} <= set(signature(varlen_attn).parameters)


@cache
def flash_attention_is_installed() -> bool:
    """Whether the package flash-attn (2) can be imported."""
    return find_spec("flash_attn") is not None


def by_torch(
    query_1NTH: Tensor, key_1GTH: Tensor, value_1GTH: Tensor, segments: Segments, scores: Scores
) -> Tensor:
    """Return the attention of all segments [1, T, N, H] by torch's kernel."""
    from torch.nn.attention.varlen import varlen_attn

    output_TNH: Any = varlen_attn(
        *_packed(query_1NTH, key_1GTH, value_1GTH, segments),
        scale=scores.scale,
        window_size=_window(scores),
        enable_gqa=query_1NTH.shape[1] != key_1GTH.shape[1],
    )
    return cast("Tensor", output_TNH[None])


def by_flash_attention(
    query_1NTH: Tensor, key_1GTH: Tensor, value_1GTH: Tensor, segments: Segments, scores: Scores
) -> Tensor:
    """Return the attention of all segments [1, T, N, H] by flash-attn 2, which has softcap."""
    output_TNH: Tensor = import_module("flash_attn").flash_attn_varlen_func(
        *_packed(query_1NTH, key_1GTH, value_1GTH, segments),
        softmax_scale=scores.scale,
        causal=True,
        window_size=_window(scores),
        softcap=scores.softcap or 0.0,
    )
    return output_TNH[None]


def _packed(
    query_1NTH: Tensor, key_1GTH: Tensor, value_1GTH: Tensor, segments: Segments
) -> tuple[Any, ...]:
    """Return what both kernels are called with: queries [T, N, H], keys and values [K, G, H] in the
    order of the segments, the bounds of the segments among queries and keys, their longest.
    """
    query_TNH, key_TGH, value_TGH = (
        tensor[0].transpose(0, 1) for tensor in (query_1NTH, key_1GTH, value_1GTH)
    )
    index_K = segments.key_index
    if index_K is not None:
        key_TGH, value_TGH = key_TGH.index_select(0, index_K), value_TGH.index_select(0, index_K)
    longest = max(segments.query_lengths), max(segments.key_lengths)
    return query_TNH, key_TGH, value_TGH, segments.query_bounds, segments.key_bounds, *longest


def _window(scores: Scores) -> tuple[int, int]:
    """Return how far a query sees to the left and right, itself not counted; -1: all."""
    return (-1 if scores.window is None else scores.window - 1, 0)
