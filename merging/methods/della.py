"""della, della_linear: drop changes at random, small ones more often (arXiv 2406.11617)."""

from collections.abc import Sequence

import numpy as np

from dualign.errors import MergeError
from dualign.merging.methods.random import uniform
from dualign.merging.methods.select import Mask
from dualign.merging.methods.task import Sparsify, task_sum
from dualign.merging.methods.tensors import Array, Combine, Tensors


def della(
    tensors: Tensors,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    normalize: bool = True,
    rescale: bool = True,
    scale: float = 1.0,
) -> Combine:
    """Keep an element with the probability of its rank, then TIES' vote and mean.

    In each row (a vector is one row) the probability rises in equal steps from `density - epsilon`
    for the smallest change to `density + epsilon` for the largest. Any shape.
    """
    return task_sum(
        tensors,
        weight=weight,
        sparsify=by_rank(density, epsilon),
        vote=True,
        normalize=normalize,
        rescale=rescale,
        scale=scale,
    )


def della_linear(
    tensors: Tensors,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    normalize: bool = False,
    rescale: bool = True,
    scale: float = 1.0,
) -> Combine:
    """As della, without the vote."""
    return task_sum(
        tensors,
        weight=weight,
        sparsify=by_rank(density, epsilon),
        normalize=normalize,
        rescale=rescale,
        scale=scale,
    )


def by_rank(densities: Sequence[float], epsilons: Sequence[float]) -> Sparsify:
    """Keep each element with the probability of its rank in its row."""

    def sparsify(tensors: Tensors, which: int) -> Mask | None:
        density, epsilon = densities[which], epsilons[which]
        if density >= 1:
            return None
        if density > 0 and not 0 < density - epsilon <= density + epsilon < 1:
            raise MergeError(
                f"della: density {density} and epsilon {epsilon}: density - epsilon and density + "
                "epsilon are probabilities and must lie between 0 and 1; lower epsilon"
            )

        def mask(start: int, stop: int, sizes: Array) -> Array:
            if density <= 0:
                return np.zeros(stop - start, bool)
            chances = probabilities(sizes.reshape(-1, tensors.columns), density, epsilon)
            kept: Array = uniform(tensors.streams[which], start, stop) < chances.reshape(-1)
            return kept

        return mask

    return sparsify


def probabilities(sizes: Array, density: float, epsilon: float) -> Array:
    """For each element of a row its chance to be kept; equal sizes rank by their place."""
    steps = sizes.shape[-1] - 1
    if steps == 0:
        return np.full(sizes.shape, density)
    order = np.argsort(sizes.astype(np.float32), axis=-1, kind="stable")
    ranks = np.empty(order.shape)
    np.put_along_axis(ranks, order, np.arange(steps + 1.0)[None, :], axis=-1)
    chances: Array = (density - epsilon) + ranks * (2 * epsilon / steps)
    return chances
