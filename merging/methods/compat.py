"""linear, slerp and task_arithmetic with mergekit's arithmetic, for those who must have its numbers.

As mergekit 0.1.5 computes: linear and slerp in float32, task_arithmetic in the type of the tensors,
where weights, changes, products and sums are each rounded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dualign.checkpoints.numbers import narrow, widen
from dualign.merging.methods.gram import gram
from dualign.merging.methods.slerp import NEARLY_PARALLEL
from dualign.merging.methods.tensors import Array, Combine, Read, Tensors

Round = Callable[[Array], Array]
"""to the type of the arithmetic and back to float32"""


def rounding(dtype: str) -> Round:
    """Rounding to a stored type: F32, BF16 or F16."""
    return lambda values: widen(narrow(np.asarray(values), dtype), dtype)


def linear(
    tensors: Tensors, rounded: Round, *, weight: Sequence[float], normalize: bool = True
) -> Combine:
    """`sum(w_i * x_i) / sum(w_i)`, each product fused with its addition, in float32."""
    weights = [np.float32(one) for one in weight]
    total = np.float32(0)
    for one in weights:
        total += one

    def combine(start: int, stop: int) -> Array:
        result = np.zeros(stop - start, np.float32)
        for read, one in zip(tensors.inputs, weights, strict=True):
            # Exact in float64, so that this rounds once, as a fused multiply-add does.
            product = np.multiply(rounded(read(start, stop)), one, dtype=np.float64)
            result = (product + result).astype(np.float32)
        return result / total if normalize else result

    return combine


def slerp(tensors: Tensors, rounded: Round, *, t: float) -> Combine:
    """The arc with float32 coefficients. Norms are summed in float64 here."""
    assert tensors.base is not None
    pair = replace(
        tensors,
        inputs=(_rounded(tensors.base, rounded), _rounded(tensors.inputs[0], rounded)),
        base=None,
    )
    products = gram(pair)
    first, second = _coefficients(products, np.float32(t))

    def combine(start: int, stop: int) -> Array:
        ours, theirs = (read(start, stop) for read in pair.inputs)
        total: Array = first * ours + second * theirs
        return total

    return combine


def task_arithmetic(
    tensors: Tensors,
    rounded: Round,
    *,
    weight: Sequence[float],
    normalize: bool = False,
    scale: float = 1.0,
) -> Combine:
    """`b + sum(w_i (x_i - b))`, rounded after every step but the additions of the sum."""
    weights = rounded(np.array(weight, np.float32))
    total_weight = rounded(weights.sum(keepdims=True))
    divisor = np.float32(1) if abs(total_weight[0]) < 1e-8 else total_weight[0]

    def combine(start: int, stop: int) -> Array:
        assert tensors.base is not None
        base = rounded(tensors.base(start, stop))
        total = np.zeros(stop - start, np.float32)
        for read, one in zip(tensors.inputs, weights, strict=True):
            total += rounded(rounded(rounded(read(start, stop)) - base) * one)
        total = rounded(total)
        if normalize:
            total = rounded(total / divisor)
        if scale != 1:
            total = rounded(total * np.float32(scale))
        return rounded(base + total)

    return combine


FUNCTIONS: Mapping[str, Callable[..., Combine]] = {
    "linear": linear,
    "slerp": slerp,
    "task_arithmetic": task_arithmetic,
}


def _rounded(read: Read, rounded: Round) -> Read:
    return lambda start, stop: rounded(read(start, stop))


def _coefficients(products: Array, t: np.float32) -> tuple[np.float32, np.float32]:
    norms = np.sqrt(np.diag(products)).astype(np.float32).astype(np.float64)
    norms[norms <= 1e-8] = 1
    cosine = np.float32(np.clip(products[0, 1] / (norms[0] * norms[1]), -1, 1))
    if abs(cosine) > NEARLY_PARALLEL:
        return np.float32(1) - t, t
    theta = np.arccos(cosine)
    below = np.sin(theta)
    return np.sin((np.float32(1) - t) * theta) / below, np.sin(t * theta) / below
