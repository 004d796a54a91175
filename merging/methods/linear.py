"""linear: the weighted sum (model soups, arXiv 2203.05482)."""

import math
from collections.abc import Sequence

from dualign.merging.methods.tensors import Array, Combine, Tensors, combination


def linear(tensors: Tensors, *, weight: Sequence[float], normalize: bool) -> Combine:
    """`y = sum(w_i * x_i)`, divided by the sum of the weights with `normalize`. Any shape.

    Summed in float64: bfloat16 values lie on a coarse grid, so weights such as 0.9 and 0.1 put one
    sum in ten exactly between two of them, where the error of a float32 sum would round it the
    wrong way.
    """
    if normalize and len(set(weight)) == 1:
        weight = [1.0] * len(weight)
    total = math.fsum(weight) if normalize else 1.0
    combine = combination(tensors, weight)
    if total == 1:
        return combine

    # Divided at the end: with weights 1, 1, 1 inputs that cancel give 0, not a remainder of 1/3.
    def divided(start: int, stop: int) -> Array:
        mean = combine(start, stop)
        mean /= total
        return mean

    return divided


def normalized(weights: Sequence[float]) -> list[float]:
    """Divide the weights by their sum: `[3, 1]` -> `[0.75, 0.25]`."""
    total = math.fsum(weights)
    return [weight / total for weight in weights]
