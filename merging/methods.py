"""The methods of merging, each a pure function of one tensor of every input.

A method sees tensors of one shape in any floating type, in the order of the recipe, and returns float32: the caller
rounds once, to the type that is written. Weights are Python floats (float64) until they meet a tensor.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """`sum(w_i * x_i)`, summed in float32. Equal weights that add up to 1 are a soup (arXiv 2203.05482).

    Any shape; all tensors have the same one.
    """
    total = tensors[0].to(torch.float32, copy=True).mul_(weights[0])
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor, alpha=weight)  # converts block by block: no float32 copy of the input
    return total


def normalized(weights: Sequence[float]) -> list[float]:
    """The weights divided by their sum: `[3, 1]` -> `[0.75, 0.25]`."""
    total = math.fsum(weights)
    return [weight / total for weight in weights]
