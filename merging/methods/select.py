"""Ranks in a tensor that is never whole in memory: exact, in two or three passes.

Values are ranked as float32, the largest first; of equal values the first element first. A
histogram of the upper halves of their bits finds the bin of a rank, one of the lower halves its
value. Equal values are common: differences of bfloat16 weights lie on a coarse grid. So masks count
them:

    values  0.3  0.1  0.3 | 0.2  0.3        two blocks; keep the ranks [0, 2)
    rank      0    4    1 |   3    2        the edge is the value of rank 1: 0.3
    equals    0         1 |        2        2 of them are before the second block, none is larger
    mask      1    0    1 |   0    0        an equal's rank is `above + equal_before + its number`
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dualign.merging.methods.tensors import Array, Tensors

Values = Callable[[int, int], Array]
"""(start, stop) -> the values to rank"""
Mask = Callable[[int, int, Array], Array]
"""(start, stop, their values) -> the elements to keep, as booleans"""

_HALF = 1 << 16


def values_at(tensors: Tensors, values: Values, ranks: Sequence[int]) -> list[float]:
    """Return the values at `ranks`; rank 0 is the largest."""
    upper = np.zeros(_HALF, np.int64)
    for start, stop in tensors.ranges():
        upper += np.bincount(_sortable(values(start, stop)) >> 16, minlength=_HALF)
    from_top = np.cumsum(upper[::-1])
    bins = [_HALF - 1 - int(np.searchsorted(from_top, rank, side="right")) for rank in ranks]
    lower = {half: np.zeros(_HALF, np.int64) for half in set(bins)}
    for start, stop in tensors.ranges():
        bits = _sortable(values(start, stop))
        high = bits >> 16
        for half, counts in lower.items():
            counts += np.bincount(bits[high == half] & (_HALF - 1), minlength=_HALF)
    result = []
    for rank, half in zip(ranks, bins, strict=True):
        within = rank - (int(from_top[_HALF - 2 - half]) if half < _HALF - 1 else 0)
        low = _HALF - 1 - int(np.searchsorted(np.cumsum(lower[half][::-1]), within, side="right"))
        result.append(_from_sortable(half << 16 | low))
    return result


def keep_ranks(tensors: Tensors, values: Values, first: int, last: int) -> Mask:
    """Return a mask of the elements whose rank is in [first, last)."""
    first, last = max(first, 0), min(last, tensors.size)
    if first >= last:
        return lambda start, stop, _values: np.zeros(stop - start, bool)
    if first == 0 and last == tensors.size:
        return lambda start, stop, _values: np.ones(stop - start, bool)
    top, bottom = np.float32(np.inf), np.float32(-np.inf)
    edges: list[_Edge] = []
    if first > 0:
        top = np.float32(values_at(tensors, values, [first])[0])
        edges.append(_edge(tensors, values, top))
    if last < tensors.size:
        bottom = np.float32(values_at(tensors, values, [last - 1])[0])
        edges.append(_edge(tensors, values, bottom))

    def mask(start: int, stop: int, block: Array) -> Array:
        block = block.astype(np.float32)
        keep: Array = block >= bottom
        if first > 0:
            keep &= block <= top
        for edge in edges:
            equals = np.flatnonzero(block == edge.value)
            ranks = edge.ranks(start, equals.size)
            keep[equals[(ranks < first) | (ranks >= last)]] = False
        return keep

    return mask


@dataclass(frozen=True, slots=True)
class _Edge:
    """A value at an end of the kept ranks, and the numbers of larger and equal elements."""

    value: np.float32
    above: int
    """elements that are larger"""
    starts: Array
    """the first element of each block"""
    equal_before: Array
    """elements before each block that have this value"""

    def ranks(self, start: int, count: int) -> Array:
        """Ranks of the `count` elements with this value in the block at `start`."""
        block = int(np.searchsorted(self.starts, start))
        assert self.starts[block] == start, "masks are made for the blocks of Tensors.ranges"
        first = self.above + self.equal_before[block]
        return np.arange(first, first + count)


def _edge(tensors: Tensors, values: Values, value: np.float32) -> _Edge:
    starts, equal, above = [], [0], 0
    for start, stop in tensors.ranges():
        block = values(start, stop).astype(np.float32)
        starts.append(start)
        equal.append(equal[-1] + int(np.count_nonzero(block == value)))
        above += int(np.count_nonzero(block > value))
    return _Edge(value, above, np.array(starts), np.array(equal[:-1]))


def _sortable(values: Array) -> Array:
    """Map float32 to uint32 in the same order."""
    single = np.ascontiguousarray(values, np.float32)
    bits, sign = single.view(np.uint32), np.uint32(1 << 31)
    if not single.size or single.min() >= 0:
        return bits | sign
    return np.where(bits >= sign, ~bits, bits | sign)


def _from_sortable(ordered: int) -> float:
    bits = ordered & 0x7FFFFFFF if ordered >> 31 else ~ordered & 0xFFFFFFFF
    return float(np.array([bits], np.uint32).view(np.float32)[0])
