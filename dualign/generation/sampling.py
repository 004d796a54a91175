"""Sampling independent of the batch: each row draws from its own seed.

transformers draws all rows of a batch from one generator, so a row's text changes with its
neighbors. Here a logits processor draws the token, and the search itself stays greedy.
Shapes: B rows, T tokens, V vocabulary.
"""

import math
from collections.abc import Sequence
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


def sampler(
    samplings: Sequence[Sampling], uniforms_BT: Tensor, prompt_length: int
) -> LogitsProcessorList:
    """Return the processor that makes greedy search sample: each row as its own settings say."""
    if all(sampling.temperature == 0 for sampling in samplings):
        return LogitsProcessorList()
    return LogitsProcessorList([_Draw(samplings, uniforms_BT, prompt_length)])


def uniforms(seeds: Sequence[int], steps: int) -> Tensor:
    """Return a number in [0, 1) for each row and step (B x T); a row's depend on its seed alone."""
    rows = [torch.rand(steps, generator=torch.Generator().manual_seed(s % 2**63)) for s in seeds]
    return torch.stack(rows)


def _choose(scores_BV: Tensor, samplings: Sequence[Sampling], draws_B: Tensor) -> Tensor:
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
            tokens_B[some] = _draw(warped_BV, draws_B[some])
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


class _Draw(LogitsProcessor):
    """Choose a token, and mask all others."""

    def __init__(
        self, samplings: Sequence[Sampling], uniforms_BT: Tensor, prompt_length: int
    ) -> None:
        self.samplings, self.uniforms_BT = samplings, uniforms_BT
        self.prompt_length = prompt_length

    def __call__(self, input_ids: LongTensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_length
        tokens_B = _choose(scores, self.samplings, self.uniforms_BT[:, step])
        return torch.full_like(scores, -math.inf).scatter(1, tokens_B[:, None], 0.0)
