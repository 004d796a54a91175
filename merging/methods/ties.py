"""ties: keep the largest changes, elect a sign, merge those that agree (arXiv 2306.01708)."""

from collections.abc import Sequence

from dualign.merging.methods.task import densest, task_sum
from dualign.merging.methods.tensors import Combine, Tensors


def ties(
    tensors: Tensors,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool = True,
    rescale: bool = False,
    scale: float = 1.0,
) -> Combine:
    """Trim, elect, merge. Any number of inputs and a base; any shape.

    Trim: of each change the share `density` with the largest sizes. Elect: the sign of the weighted
    sum. Merge: the weighted mean of the changes with that sign (the sum without `normalize`).
    """
    return task_sum(
        tensors,
        weight=weight,
        sparsify=densest(density),
        vote=True,
        normalize=normalize,
        rescale=rescale,
        scale=scale,
    )
