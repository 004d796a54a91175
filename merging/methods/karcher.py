"""karcher: the mean on the sphere that is nearest to all inputs (Karcher 1977)."""

import math

import numpy as np

from dualign.merging.methods.gram import gram, product
from dualign.merging.methods.tensors import Array, Combine, Tensors, combination

_MIN_NORM = 1e-7


def karcher(tensors: Tensors, *, max_iter: int, tol: float) -> Combine:
    """`y = u * mean(|x_i|)`, u the Karcher mean of `x_i / |x_i|`; all inputs weigh the same.

    Starts at the normalized mean and iterates

        T = mean(theta_i / sin(theta_i) (u_i - cos(theta_i) u))
        u <- cos|T| u + sin|T| T / |T|

    until `|T| < tol`, or for `max_iter` steps. Any shape, flattened. Inputs of length zero have no
    direction and are left out.
    """
    if len(tensors.inputs) == 1:
        return combination(tensors, [1.0])
    return combination(tensors, _coefficients(gram(tensors), max_iter, tol).tolist())


def _coefficients(products: Array, max_iter: int, tol: float) -> Array:
    """Return the factor of each input, from their inner products [K, K]."""
    norms = np.sqrt(np.diag(products).clip(min=0))
    used = norms >= _MIN_NORM
    factors = np.zeros(len(norms))
    if not used.any():
        return factors
    lengths = norms[used]
    cosines = products[np.ix_(used, used)] / np.outer(lengths, lengths)
    mean = _mean_direction(cosines, max_iter, tol)
    factors[used] = mean * lengths.mean() / lengths
    return factors


def _mean_direction(cosines: Array, max_iter: int, tol: float) -> Array:
    """Return u as coefficients of the u_i, whose inner products are `cosines` [K, K]."""
    count = len(cosines)
    mean = np.full(count, 1 / count)
    length = _length(mean, cosines)
    mean = mean / length if length >= _MIN_NORM else np.eye(count)[0]
    for _ in range(max_iter):
        towards = np.clip((cosines * mean).sum(axis=1), -1, 1)
        theta = np.arccos(towards)
        near = theta < 1e-6
        share = np.where(near, 1.0, theta / np.where(near, 1.0, np.sin(theta))) / count
        tangent = share - float((share * towards).sum()) * mean
        step = _length(tangent, cosines)
        if step < tol:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        mean = mean / _length(mean, cosines)
    return mean


def _length(vector: Array, cosines: Array) -> float:
    return math.sqrt(max(product(vector, cosines, vector), 0.0))
