"""slerp: the arc between two tensors (Shoemake 1985, "Animating rotation with quaternions")."""

import math
from dataclasses import replace

from dualign.merging.methods.gram import gram
from dualign.merging.methods.tensors import Array, Combine, Tensors, combination

NEARLY_PARALLEL = 0.9995  # above this cosine the arc is a line, as in mergekit
MIN_NORM = 1e-8


def slerp(tensors: Tensors, *, t: float) -> Combine:
    """`y = sin((1-t) theta)/sin(theta) b + sin(t theta)/sin(theta) x`.

    The base is at t = 0, the one input at t = 1; any shape, flattened. theta is the angle between
    the whole tensors; both keep their lengths.
    """
    assert tensors.base is not None
    pair = replace(tensors, inputs=(tensors.base, *tensors.inputs), base=None)
    return combination(pair, _coefficients(gram(pair), t))


def _coefficients(products: Array, t: float) -> tuple[float, float]:
    """Return the factors of the two inputs, from their inner products [2, 2]."""
    norms = [math.sqrt(max(products[i, i], 0.0)) for i in range(2)]
    scales = [norm if norm > MIN_NORM else 1.0 for norm in norms]
    cosine = float(products[0, 1]) / (scales[0] * scales[1])
    if abs(cosine) > NEARLY_PARALLEL:
        return 1 - t, t
    theta = math.acos(cosine)
    return math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)
