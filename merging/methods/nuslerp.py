"""nuslerp: slerp with weights; of whole tensors, rows or columns, of models or of their changes."""

from collections.abc import Sequence

import numpy as np

from dualign.merging.methods.gram import gram, gram_by_column, gram_by_row
from dualign.merging.methods.tensors import Array, Combine, Tensors

_MIN_NORM = 1e-7
_COLINEAR = 1e-16  # sin(theta)^2


def nuslerp(
    tensors: Tensors,
    *,
    weight: Sequence[float],
    nuslerp_flatten: bool,
    nuslerp_row_wise: bool,
) -> Combine:
    """The arc from x0 to x1 at `t = w1 / (w0 + w1)`; with a base the same of `x_i - b`, plus b.

    Two inputs. `nuslerp_flatten`: one angle for the whole tensor. Otherwise one angle for each
    vector along the last dimension, or along the first with `nuslerp_row_wise`.
    """
    total = weight[0] + weight[1]
    t = 0.5 if abs(total) < 1e-6 else weight[1] / total
    by_column = nuslerp_row_wise and len(tensors.shape) > 1
    fixed: tuple[Array, Array] | None = None
    if nuslerp_flatten:
        fixed = _factors(gram(tensors)[..., None], t)
    elif by_column:
        fixed = _factors(gram_by_column(tensors), t)

    def combine(start: int, stop: int) -> Array:
        deltas = tensors.deltas(start, stop)
        first, second = fixed if fixed else _by_row(deltas, tensors.columns, t)
        if fixed and not nuslerp_flatten:
            columns = np.arange(start, stop) % first.size
            first, second = first[columns], second[columns]
        merged: Array = deltas[0] * first + deltas[1] * second
        return merged if tensors.base is None else merged + tensors.base(start, stop)

    return combine


def _by_row(deltas: Sequence[Array], columns: int, t: float) -> tuple[Array, Array]:
    first, second = _factors(gram_by_row(deltas, columns), t)
    return first.repeat(columns), second.repeat(columns)


def _factors(products: Array, t: float) -> tuple[Array, Array]:
    """Return the factors [N] of the two inputs, from their inner products [2, 2, N]."""
    norms = np.maximum(np.sqrt([products[0, 0], products[1, 1]]), _MIN_NORM)
    cosine = np.clip(products[0, 1] / (norms[0] * norms[1]), -1, 1)
    colinear = 1 - cosine**2 <= _COLINEAR
    theta = np.arccos(np.where(colinear, 0, cosine))
    first, second = np.sin((1 - t) * theta), np.sin(t * theta)
    return (
        np.where(colinear, 1 - t, first / np.sin(theta)),
        np.where(colinear, t, second / np.sin(theta)),
    )
