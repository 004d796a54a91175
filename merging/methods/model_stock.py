"""model_stock: how far to go from the base to the mean of fine-tunes (arXiv 2403.19522)."""

from itertools import combinations

import numpy as np

from dualign.merging.methods.gram import gram, gram_by_row
from dualign.merging.methods.tensors import Array, Combine, Tensors, combination


def model_stock(tensors: Tensors, *, filter_wise: bool) -> Combine:
    """`y = t * mean(x) + (1 - t) * b`, `t = N c / (1 + (N - 1) c)` (eq. 5 of the paper).

    c is the mean cosine between the changes `x_i - b`, over the whole tensor, or of each row with
    `filter_wise`. Two inputs or more; any shape.
    """
    count = len(tensors.inputs)
    if not filter_wise:
        t = float(_ratio(gram(tensors)))
        return combination(tensors, [t / count] * count, base=1 - t)

    def combine(start: int, stop: int) -> Array:
        deltas = tensors.deltas(start, stop)
        t = _ratio(gram_by_row(deltas, tensors.columns)).repeat(tensors.columns)
        assert tensors.base is not None
        stock: Array = tensors.base(start, stop) + t * (np.sum(deltas, axis=0) / count)
        return stock

    return combine


def _ratio(products: Array) -> Array:
    """Return t from inner products [K, K] or [K, K, rows]; 0 where the changes cancel."""
    norms = np.sqrt(np.diagonal(products).T.clip(min=0))
    cosines = [
        np.clip(products[i, j] / np.maximum(norms[i] * norms[j], 1e-6), -1, 1)
        for i, j in combinations(range(len(norms)), 2)
    ]
    cosine = np.mean(cosines, axis=0)
    denominator = 1 + (len(norms) - 1) * cosine
    singular = np.abs(denominator) < 1e-6
    return np.where(singular, 0.0, len(norms) * cosine / np.where(singular, 1.0, denominator))
