"""The table of back ends, and which one a layer gets.

A back end takes queries [1, N, T, H], keys and values [1, G, T, H], the segments and the scores, and
returns [1, T, N, H].
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dualign.attention import flex, per_segment, varlen
from dualign.attention.scores import Scores
from dualign.attention.segments import Segments


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """One way to compute attention of segments."""

    name: str
    fits: Callable[[Tensor, Tensor, Scores], bool]
    """whether it takes these queries, values and scores"""
    attend: Callable[[Tensor, Tensor, Tensor, Segments, Scores], Tensor]


def _fits_torch_varlen(query: Tensor, value: Tensor, scores: Scores) -> bool:
    return scores.plain and varlen.fits_kernels(query, value) and varlen.torch_has_varlen()


def _fits_flash_attention(query: Tensor, value: Tensor, scores: Scores) -> bool:
    return (
        scores.sinks is None
        and varlen.fits_kernels(query, value)
        and varlen.flash_attention_is_installed()
    )


def _fits_flex(query: Tensor, value: Tensor, scores: Scores) -> bool:
    return query.is_cuda and query.shape[-1] >= flex.SMALLEST_HEAD and flex.compiles(query.device)


# The first that fits is taken: the fastest of each device first.
BACKENDS = (
    Backend(name="torch varlen", fits=_fits_torch_varlen, attend=varlen.by_torch),
    Backend(name="flash-attn", fits=_fits_flash_attention, attend=varlen.by_flash_attention),
    Backend(name="flex", fits=_fits_flex, attend=flex.by_flex),
    Backend(
        name="sdpa per document",
        fits=lambda query, value, scores: scores.plain,
        attend=per_segment.by_sdpa,
    ),
    Backend(
        name="steps per document",
        fits=lambda query, value, scores: True,
        attend=per_segment.in_steps,
    ),
)


def choose_backend(query_1NTH: Tensor, value_1GTH: Tensor, scores: Scores) -> Backend:
    """Return the first back end that takes these tensors and scores."""
    return next(backend for backend in BACKENDS if backend.fits(query_1NTH, value_1GTH, scores))
