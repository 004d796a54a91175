"""FlexAttention (torch.nn.attention.flex_attention): any type, any size of a head, softcap, sinks.

Shapes: N heads, G heads of keys, T positions, K keys of all segments, H size of a head.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from shutil import which
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import (
    AuxRequest,
    BlockMask,
    create_block_mask,
    flex_attention,
)

from dualign.attention.scores import Scores
from dualign.attention.segments import Segments

_OLDEST_CARD = (8, 0)  # Ampere; on older ones nobody tried it
SMALLEST_HEAD = 16  # of its compiled kernels


def by_flex(
    query_1NTH: Tensor, key_1GTH: Tensor, value_1GTH: Tensor, segments: Segments, scores: Scores
) -> Tensor:
    """Return the attention of all segments [1, T, N, H].

    Sinks s take their share of each query's sum afterwards: output x sigmoid(log of the sum - s).
    """
    index_K = segments.key_index
    if index_K is not None:
        key_1GTH, value_1GTH = (
            tensor.index_select(2, index_K) for tensor in (key_1GTH, value_1GTH)
        )
    heads, groups = query_1NTH.shape[1], key_1GTH.shape[1]
    if heads & (heads - 1):  # its kernels group powers of two
        key_1GTH, value_1GTH = (
            tensor.repeat_interleave(heads // groups, dim=1) for tensor in (key_1GTH, value_1GTH)
        )
    output_1NTH, aux = _flex(query_1NTH.device.type)(
        query_1NTH,
        key_1GTH,
        value_1GTH,
        score_mod=None if scores.softcap is None else _softcap(scores.softcap),
        block_mask=segments.derive(
            ("block mask", scores.window), lambda: _block_mask(segments, scores.window)
        ),
        scale=scores.scale,
        enable_gqa=query_1NTH.shape[1] != key_1GTH.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    if scores.sinks is not None:
        share_1NT = torch.sigmoid(aux.lse - scores.sinks.float()[None, :, None])
        output_1NTH = output_1NTH * share_1NT[..., None].to(output_1NTH.dtype)
    output: Tensor = output_1NTH.transpose(1, 2)
    return output


@cache
def compiles(device: torch.device) -> bool:
    """Whether torch.compile makes kernels for a card: Triton and a C compiler are there, and it isn't too old.

    Containers that only run things have no compiler, and the first step would fail.
    """
    tools = find_spec("triton") is not None and any(map(which, ("cc", "gcc", "clang")))
    return tools and torch.cuda.get_device_capability(device) >= _OLDEST_CARD


@cache
def _flex(device: str) -> Callable[..., Any]:
    """Return the kernel: compiled on an accelerator, where the plain form would hold all scores."""
    plain = cast("Callable[..., Any]", flex_attention)
    return plain if device == "cpu" else torch.compile(plain, dynamic=True)


@cache
def _softcap(cap: float) -> Callable[..., Tensor]:
    """Return the same function for the same cap: a new one is compiled anew."""

    def score(product: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(product / cap)

    return score


def _block_mask(segments: Segments, window: int | None) -> BlockMask:
    """Return which blocks of queries and keys meet: those of one segment, the key not the later."""
    device = segments.positions.device
    lengths = torch.arange(len(segments.query_lengths), device=device)
    query_counts, key_counts = segments.query_bounds.diff(), segments.key_bounds.diff()
    query_segment_T = torch.repeat_interleave(lengths, query_counts)
    key_segment_K = torch.repeat_interleave(lengths, key_counts)
    # Places counted from the segment's last query and its last key, which see each other.
    query_place_T = _places(segments.query_bounds, query_segment_T)
    key_place_K = _places(segments.key_bounds, key_segment_K)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = query_place_T[query] - key_place_K[key]
        near = distance >= 0
        if window is not None:
            near = near & (distance < window)
        return near & (query_segment_T[query] == key_segment_K[key])

    return create_block_mask(
        sees, None, None, segments.tokens, key_segment_K.numel(), device=device
    )


def _places(bounds: Tensor, segment: Tensor) -> Tensor:
    return torch.arange(segment.numel(), device=segment.device) - bounds[1:].long()[segment]
