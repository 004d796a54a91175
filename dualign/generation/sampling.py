"""Sampling independent of the batch: each row draws from its own seed.

transformers draws all rows of a batch from one generator, so a row's text changes with its
neighbors. Here a logits processor draws the token, and the search itself stays greedy.
Shapes: B rows, T tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import LongTensor, Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Choice of the next token, and limit of a generation."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 is greedy"""
    top_p: float = 1.0
    """sample from the most likely tokens that together have this probability"""
    top_k: int | None = None
    """sample from this many of the most likely tokens; None: from all"""
    stop: tuple[str, ...] = ()
    """strings that end an answer, and are no part of it; in a trace they mean nothing"""


def uniforms(seed: int, steps: int) -> list[float]:
    """Return a number in [0, 1) for each step; they depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    numbers: list[float] = torch.rand(steps, generator=generator).tolist()
    return numbers


def choose(scores_BV: Tensor, samplings: Sequence[Sampling], draws: Sequence[float]) -> Tensor:
    """Return the next token of each row: the likeliest, or what its draw in [0, 1) stands for."""
    tokens_B = scores_BV.argmax(dim=-1)
    rows_of: dict[tuple[float, float, int | None], list[int]] = {}
    for row, sampling in enumerate(samplings):
        way = sampling.temperature, sampling.top_p, sampling.top_k
        rows_of.setdefault(way, []).append(row)
    for way, rows in rows_of.items():
        if way[0] > 0:
            some = torch.tensor(rows, device=scores_BV.device)
            warped_BV = _warpers(*way)(None, scores_BV[some])
            draws_B = torch.tensor([draws[row] for row in rows], device=scores_BV.device)
            tokens_B[some] = _draw(warped_BV, draws_B)
    return tokens_B


def _warpers(temperature: float, top_p: float, top_k: int | None) -> LogitsProcessorList:
    """Return transformers' own, in the order of its `generate`."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers


def _draw(scores_BV: Tensor, draws_B: Tensor) -> Tensor:
    """Return tokens by inverting the cumulative distribution."""
    wide = torch.float32 if scores_BV.device.type == "mps" else torch.float64  # no float64 there
    cumulative_BV = scores_BV.to(wide).softmax(dim=-1).cumsum(dim=-1)
    # Scaled by the total: if rounding leaves it below 1, a draw could pass the last token.
    draw_B1 = draws_B[:, None].to(cumulative_BV) * cumulative_BV[:, -1:]
    return torch.searchsorted(cumulative_BV, draw_B1, right=True).squeeze(1)


class Sampler(LogitsProcessor):
    """Choose each row's token and mask all others, so that transformers' greedy search takes it."""

    def __init__(self, samplings: Sequence[Sampling], draws: Callable[[], Sequence[float]]) -> None:
        """Take settings for each row, and what returns each row's number for the next token."""
        self._samplings, self._draws = samplings, draws

    def __call__(self, input_ids: LongTensor, scores: Tensor) -> Tensor:
        tokens_B = choose(scores, self._samplings, self._draws())
        return torch.full_like(scores, -math.inf).scatter(1, tokens_B[:, None], 0.0)
