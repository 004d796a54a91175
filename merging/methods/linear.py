"""linear: the weighted sum (model soups, arXiv 2203.05482)."""

import math
from collections.abc import Sequence

from dualign.merging.methods.tensors import Combine, Tensors, combination


def linear(tensors: Tensors, *, weight: Sequence[float], normalize: bool = True) -> Combine:
    """`y = sum(w_i * x_i)`, the weights divided by their sum with `normalize`. Any shape.

    Summed in float64: bfloat16 values lie on a coarse grid, so weights such as 0.9 and 0.1 put one
    sum in ten exactly between two of them, where the error of a float32 sum would round it the
    wrong way.
    """
    return combination(tensors, normalized(weight) if normalize else weight)


def normalized(weights: Sequence[float]) -> list[float]:
    """The weights divided by their sum: `[3, 1]` -> `[0.75, 0.25]`."""
    total = math.fsum(weights)
    return [weight / total for weight in weights]
