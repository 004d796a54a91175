"""Ranks in a tensor that is never whole in memory: exact, in two or three passes.

Values are ranked as float32, the largest first and, where they are equal, the first element first.
A histogram of the upper halves of their bits finds the place of a rank, one of the lower halves its
value. Equal values are common: differences of bfloat16 weights lie on a coarse grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dualign.merging.methods.tensors import Array, Tensors

Values = Callable[[int, int], Array]
"""the values [start, stop) that are ranked"""
Mask = Callable[[int, int, Array], Array]
"""which of the elements [start, stop), whose values are given, are kept"""

_HALF = 1 << 16


def values_at(tensors: Tensors, values: Values, ranks: Sequence[int]) -> list[float]:
    """The values at `ranks`, counted from the largest, which is 0."""
    upper = np.zeros(_HALF, np.int64)
    for start, stop in tensors.ranges():
        upper += np.bincount(_ordered(values(start, stop)) >> 16, minlength=_HALF)
    from_top = np.cumsum(upper[::-1])
    bins = [_HALF - 1 - int(np.searchsorted(from_top, rank, side="right")) for rank in ranks]
    lower = {one: np.zeros(_HALF, np.int64) for one in set(bins)}
    for start, stop in tensors.ranges():
        bits = _ordered(values(start, stop))
        high = bits >> 16
        for one, counts in lower.items():
            counts += np.bincount(bits[high == one] & (_HALF - 1), minlength=_HALF)
    found = []
    for rank, one in zip(ranks, bins, strict=True):
        within = rank - (int(from_top[_HALF - 2 - one]) if one < _HALF - 1 else 0)
        low = _HALF - 1 - int(np.searchsorted(np.cumsum(lower[one][::-1]), within, side="right"))
        found.append(_value(one << 16 | low))
    return found


def keep_ranks(tensors: Tensors, values: Values, first: int, last: int) -> Mask:
    """A mask of the elements whose rank is in [first, last)."""
    first, last = max(first, 0), min(last, tensors.size)
    if first >= last:
        return lambda start, stop, given: np.zeros(stop - start, bool)
    if first == 0 and last == tensors.size:
        return lambda start, stop, given: np.ones(stop - start, bool)
    edges: list[tuple[_Edge, Callable[[Array], Array]]] = []
    if first > 0:
        highest = _edge(tensors, values, values_at(tensors, values, [first])[0])
        edges.append((highest, lambda tie: highest.above + tie < first))
    if last < tensors.size:
        lowest = _edge(tensors, values, values_at(tensors, values, [last - 1])[0])
        edges.append((lowest, lambda tie: lowest.above + tie >= last))
    top = edges[0][0].value if first > 0 else np.float32(np.inf)
    bottom = edges[-1][0].value if last < tensors.size else np.float32(-np.inf)

    def mask(start: int, stop: int, given: Array) -> Array:
        given = given.astype(np.float32)
        kept: Array = given >= bottom
        if first > 0:
            kept &= given <= top
        for edge, beyond in edges:
            _drop(kept, given, edge, start, beyond)
        return kept

    return mask


@dataclass(frozen=True, slots=True)
class _Edge:
    """One value: how many are larger, and how many are equal before each block."""

    value: np.float32
    above: int
    starts: Array
    equal_before: Array


def _edge(tensors: Tensors, values: Values, value: float) -> _Edge:
    single = np.float32(value)
    starts, equal, above = [], [0], 0
    for start, stop in tensors.ranges():
        given = values(start, stop).astype(np.float32)
        starts.append(start)
        equal.append(equal[-1] + int(np.count_nonzero(given == single)))
        above += int(np.count_nonzero(given > single))
    return _Edge(single, above, np.array(starts), np.array(equal[:-1]))


def _drop(
    kept: Array, given: Array, edge: _Edge, start: int, beyond: Callable[[Array], Array]
) -> None:
    """Unset the elements at an edge whose place among their equals is `beyond` the rank."""
    places = np.flatnonzero(given == edge.value)
    if not places.size:
        return
    block = int(np.searchsorted(edge.starts, start))
    assert edge.starts[block] == start, "masks are made for the blocks of Tensors.ranges"
    ties = edge.equal_before[block] + np.arange(places.size)
    kept[places[beyond(ties)]] = False


def _ordered(values: Array) -> Array:
    """float32 as uint32 in the same order."""
    single = np.ascontiguousarray(values, np.float32)
    bits, sign = single.view(np.uint32), np.uint32(1 << 31)
    if not single.size or single.min() >= 0:
        return bits | sign
    return np.where(bits >= sign, ~bits, bits | sign)


def _value(ordered: int) -> float:
    bits = ordered & 0x7FFFFFFF if ordered >> 31 else ~ordered & 0xFFFFFFFF
    return float(np.array([bits], np.uint32).view(np.float32)[0])
