"""Inner products of tensors, block by block, for the methods on spheres.

slerp, multislerp, karcher and model_stock are linear combinations of their inputs whose
coefficients depend on the inputs only through their inner products. Those take one pass; the
coefficients are then a small computation in float64.

Nothing here is a matrix product: the order of BLAS's sums depends on its threads and the processor.
"""

from collections.abc import Sequence

import numpy as np

from dualign.merging.methods.tensors import Array, Tensors


def gram(tensors: Tensors) -> Array:
    """`G[i, j] = sum(d_i * d_j)` over the whole tensor, [K, K]; d is x without a base."""
    total = np.zeros((len(tensors.inputs),) * 2)
    for start, stop in tensors.ranges():
        total += _block_gram(tensors.deltas(start, stop))
    return total


def gram_by_row(deltas: Sequence[Array], columns: int) -> Array:
    """`G[i, j, row]` of the rows in a block, [K, K, rows]."""
    rows = [delta.reshape(-1, columns) for delta in deltas]
    return np.array([[(a * b).sum(axis=-1) for b in rows] for a in rows])


def gram_by_column(tensors: Tensors) -> Array:
    """`G[i, j, column]` over the first dimension, [K, K, product of the other dimensions]."""
    width = tensors.size // tensors.shape[0]
    count = len(tensors.inputs)
    total = np.zeros((count, count, width))
    for start, stop in tensors.ranges():
        columns = np.arange(start, stop) % width
        deltas = tensors.deltas(start, stop)
        for i in range(count):
            for j in range(count):
                total[i, j] += np.bincount(columns, deltas[i] * deltas[j], minlength=width)
    return total


def product(left: Array, products: Array, right: Array) -> float:
    """Inner product of two sums of inputs: `sum(left_i * right_j * products[i, j])`."""
    return float((left[:, None] * products * right).sum())


def _block_gram(deltas: Sequence[Array]) -> Array:
    products = np.zeros((len(deltas),) * 2)
    for i, a in enumerate(deltas):
        for j, b in enumerate(deltas[: i + 1]):
            products[i, j] = products[j, i] = np.multiply(a, b).sum()
    return products
