"""Inner products of tensors, blockwise: what the methods on spheres need to know of them.

slerp, multislerp, karcher and model_stock give linear combinations of their inputs whose
coefficients depend on the inputs only through their inner products. Those take one pass; the
coefficients are then a small computation in float64.
"""

from collections.abc import Sequence

import numpy as np

from dualign.merging.methods.tensors import Array, Tensors


def gram(tensors: Tensors) -> Array:
    """`G[i, j] = sum(d_i * d_j)` over the whole tensor, K x K; d is x without a base."""
    total = np.zeros((len(tensors.inputs),) * 2)
    for start, stop in tensors.ranges():
        total += _block_gram(tensors.deltas(start, stop))
    return total


def gram_by_row(deltas: Sequence[Array], columns: int) -> Array:
    """`G[i, j, row]` of the rows in a block: K x K x rows."""
    rows = [delta.reshape(-1, columns) for delta in deltas]
    return np.array([[(one * other).sum(axis=-1) for other in rows] for one in rows])


def gram_by_column(tensors: Tensors) -> Array:
    """`G[i, j, column]` over the first dimension: K x K x the other dimensions, flat."""
    width = tensors.size // tensors.shape[0]
    count = len(tensors.inputs)
    total = np.zeros((count, count, width))
    for start, stop in tensors.ranges():
        place = np.arange(start, stop) % width
        deltas = tensors.deltas(start, stop)
        for i in range(count):
            for j in range(count):
                total[i, j] += np.bincount(place, deltas[i] * deltas[j], minlength=width)
    return total


def _block_gram(deltas: Sequence[Array]) -> Array:
    # Not a matrix product: the order of BLAS's sums depends on its number of threads.
    found = np.zeros((len(deltas),) * 2)
    for i, one in enumerate(deltas):
        for j, other in enumerate(deltas[: i + 1]):
            found[i, j] = found[j, i] = np.multiply(one, other).sum()
    return found
