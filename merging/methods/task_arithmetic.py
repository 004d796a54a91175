"""Task vectors: the changes of fine-tunes, thinned out, weighted and added to the base.

task_arithmetic, ties, dare_*, della* and breadcrumbs* are one sum (Task Arithmetic, arXiv
2212.04089), with or without a sparsifier and TIES' vote on the sign (arXiv 2306.01708). Each
sparsifier is in the file of its paper.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from dualign.merging.methods.select import Mask
from dualign.merging.methods.tensors import Array, Combine, Tensors, combination

Sparsify = Callable[[Tensors, int], Mask | None]
"""(tensors, index of an input) -> the mask of the changes to keep; None keeps all"""

_MIN_SUM = 1e-7


def task_sum(
    tensors: Tensors,
    *,
    weight: Sequence[float],
    normalize: bool,
    scale: float,
    rescale: bool = False,
    sparsifier: Callable[..., Sparsify] | None = None,
    vote: bool = False,
    **sparsity: Sequence[float],
) -> Combine:
    """`y = b + scale * sum(w_i m_i d_i)`, `d_i = x_i - b`, m_i the mask by `sparsifier`. Any shape.

    `rescale` restores the L1 norm of each d_i, as mergekit does. With `vote` an element keeps the
    changes whose sign is that of the weighted sum (+ for 0). `normalize` divides by the sum of the
    weights that took part. `sparsity` are the sparsifier's parameters, each with a value per input.
    """
    if not vote and sparsifier is None:
        divisor = _divisor(weight) if normalize else 1.0
        factors = [w * scale / divisor for w in weight]
        return combination(tensors, factors, base=1 - sum(factors))
    sparsify = sparsifier(**sparsity) if sparsifier else None
    masks = [sparsify(tensors, i) if sparsify else None for i in range(len(tensors.inputs))]
    gains = [_gain(tensors, i, mask) if rescale else 1.0 for i, mask in enumerate(masks)]

    def combine(start: int, stop: int) -> Array:
        deltas = tensors.deltas(start, stop)
        for i, mask in enumerate(masks):
            if mask is not None:
                deltas[i] *= mask(start, stop, np.abs(deltas[i]))
            deltas[i] *= gains[i] * weight[i]
        total = _sum(deltas)
        if vote:
            total = _elected(deltas, total, weight if normalize else None)
        elif normalize:
            total /= _divisor(weight)
        if scale != 1:
            total *= scale
        assert tensors.base is not None
        total += tensors.base(start, stop)
        return total

    return combine


def magnitudes(tensors: Tensors, index: int) -> Callable[[int, int], Array]:
    """|d| of one input, to rank: in float32, which is the precision of ranks."""
    read, base = tensors.inputs[index], tensors.base
    assert base is not None

    def values(start: int, stop: int) -> Array:
        delta: Array = read(start, stop) - base(start, stop)
        return np.abs(delta, out=delta)

    return values


def _sum(parts: Iterable[Array]) -> Array:
    """Sum parts as they are generated, so that few blocks are in the processor's cache."""
    remaining = iter(parts)
    total = next(remaining) + 0.0
    for part in remaining:
        total += part
    return total


def _divisor(weight: Sequence[float]) -> float:
    total = sum(weight)
    return 1.0 if abs(total) < 1e-8 else total


def _elected(deltas: Sequence[Array], votes: Array, weight: Sequence[float] | None) -> Array:
    """Sum the weighted changes with the sign of `votes`; divide by their weights, if given.

        deltas      [ 3, -1]  [-2, -4]  [ 1,  2]     votes [2, -3] -> side [1, -1]
        turned      [ 3,  1]  [-2,  4]  [ 1, -2]     losers are below 0
        clipped     [ 3,  1]  [ 0,  4]  [ 1,  0]     sum [4, 5], turned back [4, -5]

    Changes the deltas in place: a choice by element (`np.where`) takes five times as long as a
    product.
    """
    side = np.copysign(1.0, votes)
    for delta in deltas:
        delta *= side
    total = _sum(np.maximum(delta, 0) for delta in deltas)
    if weight is not None:
        pairs = zip(deltas, weight, strict=True)
        divisor = _sum(np.multiply(delta > 0, w) for delta, w in pairs)
        divisor += divisor == 0
        total /= divisor
    total *= side
    return total


def _gain(tensors: Tensors, index: int, mask: Mask | None) -> float:
    """Factor that gives the masked change the L1 norm of the whole one."""
    if mask is None:
        return 1.0
    before = after = 0.0
    for start, stop in tensors.ranges():
        sizes = np.abs(tensors.delta(index, start, stop))
        before += float(sizes.sum())
        after += float((sizes * mask(start, stop, sizes)).sum())
    return 1.0 if before < _MIN_SUM or after < _MIN_SUM else before / after
