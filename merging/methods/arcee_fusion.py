"""arcee_fusion: take over only the changes that matter (Arcee, 2024)."""

import numpy as np

from dualign.merging.methods.select import values_at
from dualign.merging.methods.tensors import Array, Combine, Tensors

_EPS = 1e-8
_QUARTILES = (0.25, 0.5, 0.75)


def arcee_fusion(tensors: Tensors) -> Combine:
    """`y = b + d * [I >= median(I) + 1.5 IQR(I)]`, `d = x - b`. One input and the base.

    Importance: `I = |d| * KL(softmax(x) + 1e-8 || softmax(b) + 1e-8)`, the softmax over the last
    dimension, one KL for each row (a vector is one row). Quartiles are elements of the whole
    tensor, without interpolation.
    """

    def importance(start: int, stop: int) -> Array:
        return _importance(tensors, start, stop)

    # Ranks count from the largest value, quantiles from the smallest.
    ranks = [tensors.size - 1 - int(quartile * (tensors.size - 1)) for quartile in _QUARTILES]
    low, middle, high = values_at(tensors, importance, ranks)
    threshold = np.float32(middle + 1.5 * (high - low))

    def combine(start: int, stop: int) -> Array:
        assert tensors.base is not None
        important = importance(start, stop).astype(np.float32) >= threshold
        fused: Array = tensors.base(start, stop) + tensors.delta(0, start, stop) * important
        return fused

    return combine


def _importance(tensors: Tensors, start: int, stop: int) -> Array:
    assert tensors.base is not None
    inputs = [
        read(start, stop).astype(np.float64).reshape(-1, tensors.columns)
        for read in (tensors.inputs[0], tensors.base)
    ]
    p, q = (_softmax(rows) + _EPS for rows in inputs)
    divergence = (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    importance: Array = (np.abs(inputs[0] - inputs[1]) * divergence).reshape(-1)
    return importance


def _softmax(rows: Array) -> Array:
    exponents = np.exp(rows - rows.max(axis=-1, keepdims=True))
    softmax: Array = exponents / exponents.sum(axis=-1, keepdims=True)
    return softmax
