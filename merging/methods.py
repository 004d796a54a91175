"""The methods of merging, each a pure function of one tensor of every input.

A method sees tensors of one shape in any floating type, in the order of the recipe, and returns
float32: the caller rounds to the type that is written.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 1 << 16  # elements summed at once: their float64 sum stays in the processor's cache


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """`sum(w_i * x_i)`; equal weights that add up to 1 are a soup (arXiv 2203.05482).

    Any shape, the same for all tensors. Summed in float64: bfloat16 values lie on a coarse grid, so
    weights such as 0.3 put about one sum in a hundred exactly between two of them, where the error
    of a float32 sum would round it the wrong way.
    """
    out = torch.empty(tensors[0].shape, dtype=torch.float32)
    flat_out, flat = out.view(-1), [tensor.reshape(-1) for tensor in tensors]
    for start in range(0, flat_out.numel(), BLOCK):
        block = slice(start, start + BLOCK)
        total = flat[0][block].to(torch.float64, copy=True).mul_(weights[0])
        for tensor, weight in zip(flat[1:], weights[1:], strict=True):
            total.add_(tensor[block], alpha=weight)
        flat_out[block] = total
    return out


def normalized(weights: Sequence[float]) -> list[float]:
    """The weights divided by their sum: `[3, 1]` -> `[0.75, 0.25]`."""
    total = math.fsum(weights)
    return [weight / total for weight in weights]
