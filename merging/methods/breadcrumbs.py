"""breadcrumbs, breadcrumbs_ties: drop the smallest changes and the outliers (arXiv 2312.06795).

`y = b + scale * sum(w_i m_i d_i)`. m_i drops the share `gamma` with the largest magnitudes, keeps
the share `density` below it, and drops the rest. breadcrumbs_ties adds TIES' vote on the sign.
"""

from collections.abc import Sequence
from functools import partial

from dualign.merging.methods.select import Mask, keep_ranks
from dualign.merging.methods.task_arithmetic import Sparsify, magnitudes, task_sum
from dualign.merging.methods.tensors import Tensors


def _mask_tails(density: Sequence[float], gamma: Sequence[float]) -> Sparsify:
    """Keep the changes below the outliers and above the small ones.

    Of 10 elements with density 0.6 and gamma 0.1 the ranks [1, 7) stay. With density 0.9 and gamma
    0.3 too few would be left, so fewer outliers go: ranks [1, 10) stay.
    """

    def sparsify(tensors: Tensors, index: int) -> Mask | None:
        if density[index] >= 1:
            return None
        count = int(density[index] * tensors.size)
        smallest = max(0, tensors.size - count - int(gamma[index] * tensors.size))
        first = tensors.size - smallest - count
        return keep_ranks(tensors, magnitudes(tensors, index), first, first + count)

    return sparsify


breadcrumbs = partial(task_sum, sparsifier=_mask_tails)
breadcrumbs_ties = partial(task_sum, sparsifier=_mask_tails, vote=True)
