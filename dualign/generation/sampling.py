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


def sampler(sampling: Sampling, uniforms_BT: Tensor, prompt_length: int) -> LogitsProcessorList:
    """Return the processors that make greedy search sample: temperature, top-p, then the draw."""
    if sampling.temperature == 0:
        return LogitsProcessorList()
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    warpers.append(_Draw(uniforms_BT, prompt_length))
    return warpers


def uniforms(seeds: Sequence[int], steps: int) -> Tensor:
    """Return a number in [0, 1) for each row and step (B x T); a row's depend on its seed alone."""
    rows = [torch.rand(steps, generator=torch.Generator().manual_seed(s % 2**63)) for s in seeds]
    return torch.stack(rows)


class _Draw(LogitsProcessor):
    """Draw a token by inverting the cumulative distribution, and mask all others."""

    def __init__(self, uniforms_BT: Tensor, prompt_length: int) -> None:
        self.uniforms_BT = uniforms_BT
        self.prompt_length = prompt_length

    def __call__(self, input_ids: LongTensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_length
        wide = torch.float32 if scores.device.type == "mps" else torch.float64  # MPS has no float64
        cumulative_BV = scores.to(wide).softmax(dim=-1).cumsum(dim=-1)
        # Scaled by the total: if rounding leaves it below 1, a draw could pass the last token.
        draw_B1 = self.uniforms_BT[:, step, None].to(cumulative_BV) * cumulative_BV[:, -1:]
        chosen_B1 = torch.searchsorted(cumulative_BV, draw_B1, right=True)
        return torch.full_like(scores, -math.inf).scatter(1, chosen_B1, 0.0)
