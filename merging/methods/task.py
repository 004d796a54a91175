"""Task vectors: what each fine-tune changed, thinned out, weighed, and added to the base.

The methods from task_arithmetic to breadcrumbs_ties are this sum (Task Arithmetic, arXiv
2212.04089) with one way or another to thin the changes (`Sparsify`) and with or without TIES' vote
on the sign (arXiv 2306.01708).
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from dualign.merging.methods.select import Mask, keep_ranks
from dualign.merging.methods.tensors import Array, Combine, Tensors, combination

Sparsify = Callable[[Tensors, int], Mask | None]
"""for one input the mask of the changes that are kept; None keeps all"""

LEAST_SUM = 1e-7


def task_sum(
    tensors: Tensors,
    *,
    weight: Sequence[float],
    sparsify: Sparsify | None = None,
    rescale: bool = False,
    vote: bool = False,
    normalize: bool = False,
    scale: float = 1.0,
) -> Combine:
    """`y = b + scale * sum(w_i m_i d_i)`, `d_i = x_i - b` as `sparsify` leaves it.

    `rescale` gives each d_i the L1 norm that it had. With `vote` an element keeps the changes whose
    sign is that of the weighted sum (+ for 0). `normalize` divides by the weights that took part.
    """
    if not vote and sparsify is None:
        share = _divisor(weight) if normalize else 1.0
        factors = [one * scale / share for one in weight]
        return combination(tensors, factors, base=1 - sum(factors))
    count = len(tensors.inputs)
    masks = [sparsify(tensors, i) if sparsify else None for i in range(count)]
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


def densest(densities: Sequence[float]) -> Sparsify:
    """Keep the largest `int(density * n)` changes, but one at least (TIES, step 1)."""

    def sparsify(tensors: Tensors, which: int) -> Mask | None:
        density = densities[which]
        kept = max(1, int(density * tensors.size)) if density > 0 else 0
        return None if density >= 1 else keep_ranks(tensors, ranked_sizes(tensors, which), 0, kept)

    return sparsify


def sizes(tensors: Tensors, which: int) -> Callable[[int, int], Array]:
    """|d| of one input."""
    return lambda start, stop: np.abs(tensors.delta(which, start, stop))


def ranked_sizes(tensors: Tensors, which: int) -> Callable[[int, int], Array]:
    """|d| of one input, to rank: as precise as float32, which is what ranks are made of."""
    read, base = tensors.inputs[which], tensors.base
    assert base is not None

    def values(start: int, stop: int) -> Array:
        apart: Array = read(start, stop) - base(start, stop)
        return np.abs(apart, out=apart)

    return values


def _sum(parts: Iterable[Array]) -> Array:
    """Of parts that are made one by one, so that few blocks are in the processor's cache."""
    remaining = iter(parts)
    total = next(remaining) + 0.0
    for part in remaining:
        total += part
    return total


def _divisor(weight: Sequence[float]) -> float:
    total = sum(weight)
    return 1.0 if abs(total) < 1e-8 else total


def _elected(deltas: Sequence[Array], votes: Array, weight: Sequence[float] | None) -> Array:
    """The sum of the weighted changes with the sign of `votes`, divided by their weights, if given.

    All are turned to the winning side, where the losers are below 0: a choice by element
    (`np.where`) takes five times as long as a product.
    """
    side = np.copysign(1.0, votes)
    for delta in deltas:
        delta *= side
    total = _sum(np.maximum(delta, 0) for delta in deltas)
    if weight is not None:
        pairs = zip(deltas, weight, strict=True)
        divisor = _sum(np.multiply(delta > 0, one) for delta, one in pairs)
        divisor += divisor == 0
        total /= divisor
    total *= side
    return total


def _gain(tensors: Tensors, which: int, mask: Mask | None) -> float:
    """What gives the masked change the L1 norm of the whole one."""
    if mask is None:
        return 1.0
    before = after = 0.0
    for start, stop in tensors.ranges():
        size = sizes(tensors, which)(start, stop)
        before += float(size.sum())
        after += float((size * mask(start, stop, size)).sum())
    return 1.0 if before < LEAST_SUM or after < LEAST_SUM else before / after
