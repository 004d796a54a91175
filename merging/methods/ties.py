"""ties: keep the largest changes, elect a sign, merge the changes that agree (arXiv 2306.01708).

Trim: of each change the share `density` with the largest magnitudes. Elect: the sign of the
weighted sum. Merge: the weighted mean of the changes with that sign (their sum without
`normalize`).
"""

from collections.abc import Sequence
from functools import partial

from dualign.merging.methods.select import Mask, keep_ranks
from dualign.merging.methods.task_arithmetic import Sparsify, magnitudes, task_sum
from dualign.merging.methods.tensors import Tensors


def _trim(density: Sequence[float]) -> Sparsify:
    """Keep the `int(density * n)` largest changes of each input, and at least one."""

    def sparsify(tensors: Tensors, index: int) -> Mask | None:
        share = density[index]
        count = max(1, int(share * tensors.size)) if share > 0 else 0
        return None if share >= 1 else keep_ranks(tensors, magnitudes(tensors, index), 0, count)

    return sparsify


ties = partial(task_sum, sparsifier=_trim, vote=True)
