"""dare_linear, dare_ties: drop changes at random and rescale the rest (arXiv 2311.03099).

`y = b + scale * sum(w_i m_i d_i)`, each element of m_i is 1 with probability `density`. `rescale`
gives the thinned change the L1 norm of the whole one, as mergekit does; the paper divides by the
density, which is the same on average. dare_ties adds TIES' vote on the sign.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from dualign.merging.methods.random import uniform
from dualign.merging.methods.select import Mask
from dualign.merging.methods.task_arithmetic import Sparsify, task_sum
from dualign.merging.methods.tensors import Array, Tensors


def _bernoulli(density: Sequence[float]) -> Sparsify:
    """Keep each element with probability `density`."""

    def sparsify(tensors: Tensors, index: int) -> Mask | None:
        probability, key = density[index], tensors.streams[index]
        if probability >= 1:
            return None

        def mask(start: int, stop: int, _sizes: Array) -> Array:
            keep: Array = np.less(uniform(key, start, stop), probability)
            return keep

        return mask

    return sparsify


dare_linear = partial(task_sum, sparsifier=_bernoulli)
dare_ties = partial(task_sum, sparsifier=_bernoulli, vote=True)
