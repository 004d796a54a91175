"""Sampling that doesn't depend on the batch: each row draws from a seed of its own.

transformers draws all rows of a batch from one generator, so a row's text changes with its
neighbours. Here the draw is a logits processor, and the search stays greedy. Shapes: B rows, T
tokens, V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import LongTensor, Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)


def sampler(
    temperature: float, top_p: float, uniforms_BT: Tensor, prompt_length: int
) -> LogitsProcessorList:
    """What makes greedy search sample: the library's temperature and top-p, then the draw."""
    if temperature == 0:
        return LogitsProcessorList()
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    warpers.append(_Draw(uniforms_BT, prompt_length))
    return warpers


def uniforms(seeds: Sequence[int], steps: int) -> Tensor:
    """A number in [0, 1) for each row and step; a row's depend on its seed alone."""
    rows = [torch.rand(steps, generator=torch.Generator().manual_seed(s % 2**63)) for s in seeds]
    return torch.stack(rows)


class _Draw(LogitsProcessor):
    """Draws a token by inverting the cumulative distribution, and leaves only that one possible."""

    def __init__(self, uniforms_BT: Tensor, prompt_length: int) -> None:
        self.uniforms_BT = uniforms_BT
        self.prompt_length = prompt_length

    def __call__(self, input_ids: LongTensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_length
        cumulative_BV = scores.double().softmax(dim=-1).cumsum(dim=-1)
        # Times the total, which rounding may leave below 1: else the draw could fall behind the
        # last token.
        draw_B1 = self.uniforms_BT[:, step, None].to(cumulative_BV) * cumulative_BV[:, -1:]
        chosen_B1 = torch.searchsorted(cumulative_BV, draw_B1, right=True)
        return torch.full_like(scores, -math.inf).scatter(1, chosen_B1, 0.0)
