"""slerp: along the arc between two tensors (Shoemake 1985, "Animating rotation with quaternions")."""

import math

from dualign.merging.methods.gram import gram
from dualign.merging.methods.tensors import Array, Combine, Tensors, combination

NEARLY_PARALLEL = 0.9995  # above this cosine the arc is a line, as in mergekit
LEAST_NORM = 1e-8


def slerp(tensors: Tensors, *, t: float) -> Combine:
    """`y = sin((1-t) theta)/sin(theta) x0 + sin(t theta)/sin(theta) x1`.

    Two inputs, the first at t = 0; any shape, flattened. theta is the angle between the whole
    tensors; the inputs keep their lengths.
    """
    return combination(tensors, coefficients(gram(tensors), t))


def coefficients(products: Array, t: float) -> tuple[float, float]:
    """The factors of the two inputs, from their inner products."""
    norms = [math.sqrt(max(products[i, i], 0.0)) for i in range(2)]
    scales = [norm if norm > LEAST_NORM else 1.0 for norm in norms]
    cosine = float(products[0, 1]) / (scales[0] * scales[1])
    if abs(cosine) > NEARLY_PARALLEL:
        return 1 - t, t
    theta = math.acos(cosine)
    return math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)
