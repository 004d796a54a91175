"""dare_linear, dare_ties: drop changes at random and rescale the rest (arXiv 2311.03099)."""

from collections.abc import Sequence

import numpy as np

from dualign.merging.methods.random import uniform
from dualign.merging.methods.select import Mask
from dualign.merging.methods.task import Sparsify, task_sum
from dualign.merging.methods.tensors import Array, Combine, Tensors


def dare_linear(
    tensors: Tensors,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool = False,
    rescale: bool = True,
    scale: float = 1.0,
) -> Combine:
    """`y = b + scale * sum(w_i m_i d_i)`, each element of m_i is 1 with probability `density`.

    `rescale` gives the thinned change the L1 norm of the whole one, as mergekit does; the paper
    divides by the density, which is the same on average. Any shape.
    """
    return task_sum(
        tensors,
        weight=weight,
        sparsify=at_random(density),
        normalize=normalize,
        rescale=rescale,
        scale=scale,
    )


def dare_ties(
    tensors: Tensors,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool = False,
    rescale: bool = True,
    scale: float = 1.0,
) -> Combine:
    """As dare_linear, with TIES' vote on the sign of each element."""
    return task_sum(
        tensors,
        weight=weight,
        sparsify=at_random(density),
        vote=True,
        normalize=normalize,
        rescale=rescale,
        scale=scale,
    )


def at_random(densities: Sequence[float]) -> Sparsify:
    """Keep each element with probability `density`."""

    def sparsify(tensors: Tensors, which: int) -> Mask | None:
        density, key = densities[which], tensors.streams[which]
        if density >= 1:
            return None

        def mask(start: int, stop: int, _sizes: Array) -> Array:
            kept: Array = np.less(uniform(key, start, stop), density)
            return kept

        return mask

    return sparsify
