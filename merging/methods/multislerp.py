"""multislerp: a weighted mean on the sphere, by one step in the tangent space (Goddard 2025).

https://goddard.blog/posts/multislerp-wow-what-a-cool-idea
"""

import math
from collections.abc import Sequence

import numpy as np

from dualign.errors import MergeError
from dualign.merging.methods.gram import gram, product
from dualign.merging.methods.linear import normalized
from dualign.merging.methods.tensors import Array, Combine, Tensors, combination


def multislerp(
    tensors: Tensors,
    *,
    weight: Sequence[float],
    normalize_weights: bool,
    eps: float,
) -> Combine:
    """`y = (m cos a + T sin(a) / a) * sum(w_i |x_i|)`; with a base the same of `x_i - b`, plus b.

    `u_i = x_i / |x_i|`, m their weighted mean scaled to length 1, a the length of T, and
    `T = sum(w_i (u_i - (u_i . m) m))` the step from m in the tangent space. Any shape, flattened;
    any number of inputs.
    """
    if len(tensors.inputs) == 1:
        return combination(tensors, [1.0])
    weights = np.array(normalized(weight) if normalize_weights else weight)
    factors = _coefficients(gram(tensors), weights, eps)
    if tensors.base is None:
        return combination(tensors, factors.tolist())
    return combination(tensors, factors.tolist(), base=1 - float(factors.sum()))


def _coefficients(products: Array, weights: Array, eps: float) -> Array:
    """Return the factor of each input, from their inner products [K, K]."""
    norms = np.sqrt(np.diag(products).clip(min=0))
    cosines = products / np.outer(norms + eps, norms + eps)
    mean_norm = math.sqrt(max(product(weights, cosines, weights), 0.0))
    if mean_norm < eps:
        if len(weights) == 2:
            return weights
        raise MergeError(
            "multislerp: the weighted directions of the inputs add up to zero, so they have no "
            "mean; choose other weights"
        )
    mean = weights / mean_norm  # coefficients of the u_i, here and below
    tangent = weights - product(weights, cosines, mean) * mean
    length = math.sqrt(max(product(tangent, cosines, tangent), 0.0)) + eps
    result = mean * np.cos(length) + tangent * (np.sin(length) / length)
    factors: Array = result * float((norms * weights).sum()) / (norms + eps)
    return factors
