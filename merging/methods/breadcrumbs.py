"""breadcrumbs, breadcrumbs_ties: drop the smallest changes and the outliers (arXiv 2312.06795)."""

from collections.abc import Sequence

from dualign.merging.methods.select import Mask, keep_ranks
from dualign.merging.methods.task import Sparsify, ranked_sizes, task_sum
from dualign.merging.methods.tensors import Combine, Tensors


def breadcrumbs(
    tensors: Tensors,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    normalize: bool = False,
    rescale: bool = False,
    scale: float = 1.0,
) -> Combine:
    """`y = b + scale * sum(w_i m_i d_i)`; m_i drops the share `gamma` with the largest sizes.

    It keeps the share `density` below them, and drops the rest. With too few elements left for
    that, fewer outliers are dropped. Any shape.
    """
    return task_sum(
        tensors,
        weight=weight,
        sparsify=between(density, gamma),
        normalize=normalize,
        rescale=rescale,
        scale=scale,
    )


def breadcrumbs_ties(
    tensors: Tensors,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    normalize: bool = False,
    rescale: bool = False,
    scale: float = 1.0,
) -> Combine:
    """As breadcrumbs, with TIES' vote on the sign of each element."""
    return task_sum(
        tensors,
        weight=weight,
        sparsify=between(density, gamma),
        vote=True,
        normalize=normalize,
        rescale=rescale,
        scale=scale,
    )


def between(densities: Sequence[float], gammas: Sequence[float]) -> Sparsify:
    """Keep the sizes below the outliers and above the small ones."""

    def sparsify(tensors: Tensors, which: int) -> Mask | None:
        if densities[which] >= 1:
            return None
        kept = int(densities[which] * tensors.size)
        smallest = max(0, tensors.size - kept - int(gammas[which] * tensors.size))
        first = tensors.size - smallest - kept
        return keep_ranks(tensors, ranked_sizes(tensors, which), first, first + kept)

    return sparsify
