"""sce: select, calculate, erase: merge where models differ most (arXiv 2408.07990)."""

from collections.abc import Sequence

import numpy as np

from dualign.merging.methods.select import Mask, keep_ranks
from dualign.merging.methods.tensors import Array, Combine, Tensors

_MIN_ENERGY = 1e-6


def sce(tensors: Tensors, *, select_topk: float) -> Combine:
    """`y = b + sum(w_i m_i d_i) / sum(w_i m_i)`, `d_i = x_i - b`. Any shape.

    Select: the share `select_topk` of the elements with a variance between the d_i above 0, the
    largest variances first. Calculate: w_i is the share of d_i in the sum of all squares. Erase:
    m_i drops elements whose sign isn't that of the sum.
    """
    mask = _select(tensors, select_topk)
    weights = _energies(tensors, mask)

    def combine(start: int, stop: int) -> Array:
        deltas = _masked_deltas(tensors, mask, start, stop)
        positive = np.sum(deltas, axis=0) >= 0
        total, divisor = np.zeros(stop - start), np.zeros(stop - start)
        for delta, weight in zip(deltas, weights, strict=True):
            agrees = np.where(positive, delta > 0, delta < 0)
            total += weight * delta * agrees
            divisor += weight * agrees
        assert tensors.base is not None
        return tensors.base(start, stop) + total / np.maximum(divisor, _MIN_ENERGY)

    return combine


def _variance(deltas: Sequence[Array]) -> Array:
    variance: Array = np.var(np.stack(deltas), axis=0).astype(np.float32)
    return variance


def _select(tensors: Tensors, share: float) -> Mask | None:
    if share >= 1:
        return None
    nonzero = sum(
        int(np.count_nonzero(_variance(tensors.deltas(start, stop))))
        for start, stop in tensors.ranges()
    )
    return keep_ranks(
        tensors,
        lambda start, stop: _variance(tensors.deltas(start, stop)),
        0,
        int(nonzero * share),
    )


def _masked_deltas(tensors: Tensors, mask: Mask | None, start: int, stop: int) -> list[Array]:
    deltas = tensors.deltas(start, stop)
    if mask is None:
        return deltas
    keep = mask(start, stop, _variance(deltas))
    return [delta * keep for delta in deltas]


def _energies(tensors: Tensors, mask: Mask | None) -> list[float]:
    squares = np.zeros(len(tensors.inputs))
    for start, stop in tensors.ranges():
        deltas = _masked_deltas(tensors, mask, start, stop)
        squares += [float((delta * delta).sum()) for delta in deltas]
    means = squares / max(tensors.size, 1)
    total = float(means.sum())
    if total < _MIN_ENERGY:
        return [1 / len(means)] * len(means)
    return list(means / total)
