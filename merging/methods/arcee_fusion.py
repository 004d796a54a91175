"""arcee_fusion: take over only the changes that matter (Arcee, 2024)."""

import numpy as np

from dualign.merging.methods.select import values_at
from dualign.merging.methods.tensors import Array, Combine, Tensors

_EPS = 1e-8
QUARTERS = (0.25, 0.5, 0.75)


def arcee_fusion(tensors: Tensors) -> Combine:
    """`y = b + d * [I >= median(I) + 1.5 IQR(I)]`, `d = x - b`. One input and the base.

    Importance: `I = |d| * KL(softmax(x) + 1e-8 || softmax(b) + 1e-8)`, the softmax over the last
    dimension, one KL for each row (a vector is one row). Quantiles are elements, without
    interpolation, of the whole tensor.
    """

    def importance(start: int, stop: int) -> Array:
        return _importance(tensors, start, stop)

    # Ranks count from the largest value, quantiles from the smallest.
    ranks = [tensors.size - 1 - int(quarter * (tensors.size - 1)) for quarter in QUARTERS]
    low, middle, high = values_at(tensors, importance, ranks)
    threshold = np.float32(middle + 1.5 * (high - low))

    def combine(start: int, stop: int) -> Array:
        assert tensors.base is not None
        kept = importance(start, stop).astype(np.float32) >= threshold
        fused: Array = tensors.base(start, stop) + tensors.delta(0, start, stop) * kept
        return fused

    return combine


def _importance(tensors: Tensors, start: int, stop: int) -> Array:
    assert tensors.base is not None
    inputs = [
        one(start, stop).astype(np.float64).reshape(-1, tensors.columns)
        for one in (tensors.inputs[0], tensors.base)
    ]
    ours, theirs = (_softmax(one) + _EPS for one in inputs)
    divergence = (ours * np.log(ours / theirs)).sum(axis=-1, keepdims=True)
    importance: Array = (np.abs(inputs[0] - inputs[1]) * divergence).reshape(-1)
    return importance


def _softmax(rows: Array) -> Array:
    exponents = np.exp(rows - rows.max(axis=-1, keepdims=True))
    softmax: Array = exponents / exponents.sum(axis=-1, keepdims=True)
    return softmax
