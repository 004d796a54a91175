"""della, della_linear: drop changes at random, small ones more often (arXiv 2406.11617).

MAGPRUNE keeps an element with the probability of its rank: in each row (a vector is one row) it
rises in equal steps from `density - epsilon` for the smallest change to `density + epsilon` for the
largest. Then della is TIES' vote and mean, della_linear the weighted sum.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from dualign.errors import MergeError
from dualign.merging.methods.random import uniform
from dualign.merging.methods.select import Mask
from dualign.merging.methods.task_arithmetic import Sparsify, task_sum
from dualign.merging.methods.tensors import Array, Tensors


def _magprune(density: Sequence[float], epsilon: Sequence[float]) -> Sparsify:
    """Keep each element with the probability of its rank in its row."""

    def sparsify(tensors: Tensors, index: int) -> Mask | None:
        middle, spread = density[index], epsilon[index]
        if middle >= 1:
            return None
        if middle > 0 and not 0 < middle - spread <= middle + spread < 1:
            raise MergeError(
                f"della: density {middle} and epsilon {spread}: density - epsilon and density + "
                "epsilon are probabilities and must lie between 0 and 1; lower epsilon"
            )

        def mask(start: int, stop: int, sizes: Array) -> Array:
            if middle <= 0:
                return np.zeros(stop - start, bool)
            chances = _probabilities(sizes.reshape(-1, tensors.columns), middle, spread)
            keep: Array = uniform(tensors.streams[index], start, stop) < chances.reshape(-1)
            return keep

        return mask

    return sparsify


def _probabilities(sizes: Array, density: float, epsilon: float) -> Array:
    """Probability of keeping each element [rows, columns]; of equal sizes the first ranks lower.

    Sizes [0.3, 0.1, 0.2] at density 0.5 and epsilon 0.2 give [0.7, 0.3, 0.5].
    """
    steps = sizes.shape[-1] - 1
    if steps == 0:
        return np.full(sizes.shape, density)
    order = np.argsort(sizes.astype(np.float32), axis=-1, kind="stable")
    ranks = np.empty(order.shape)
    np.put_along_axis(ranks, order, np.arange(steps + 1.0)[None, :], axis=-1)
    chances: Array = (density - epsilon) + ranks * (2 * epsilon / steps)
    return chances


della = partial(task_sum, sparsifier=_magprune, vote=True)
della_linear = partial(task_sum, sparsifier=_magprune)
