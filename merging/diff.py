"""How far two checkpoints are apart, tensor by tensor and layer by layer."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dualign.checkpoints.checkpoint import Weights
from dualign.checkpoints.shards import PIECE, cpu_count, progress
from dualign.errors import MergeError
from dualign.merging.layers import find_stack


@dataclass(frozen=True, kw_only=True, slots=True)
class Distance:
    """Between two tensors, or several taken together."""

    name: str
    relative: float
    """|a - b| / |a|"""
    cosine: float
    largest: float
    """the largest difference of one element"""
    changed: float
    """the share of the elements that differ"""


@dataclass(frozen=True, slots=True)
class _Sums:
    """What distances are made of; sums of tensors are those of their elements."""

    size: int
    changed: int
    largest: float
    apart: float
    first: float
    second: float
    product: float


def distances(a: Weights, b: Weights, *, by_layer: bool = False) -> list[Distance]:
    """Of each tensor, in the order of `a`; or of each layer, with what lies outside by itself.

    Raises:
        MergeError: they don't have the same tensors.
    """
    for name in sorted(set(a.entries) ^ set(b.entries)):
        holder = a if name in a.entries else b
        raise MergeError(f"only {holder.folders[0]} has the tensor {name}")
    for name, entry in a.entries.items():
        if entry.shape != b.entries[name].shape:
            raise MergeError(f"{name} is {entry.shape} and {b.entries[name].shape}")
    total = sum(entry.nbytes for entry in a.entries.values())
    with ThreadPoolExecutor(cpu_count()) as pool, progress(total, "comparing") as bar:
        parts = pool.map(lambda name: _sums(a, b, name, bar.update), a.entries)
        found = dict(zip(a.entries, parts, strict=True))
    if not by_layer:
        return [_distance(name, [sums]) for name, sums in found.items()]
    stack = find_stack(a.entries)
    groups: dict[str, list[_Sums]] = {}
    for name, sums in found.items():
        layer = stack.layer(name)
        groups.setdefault(name if layer is None else f"{stack.prefix}{layer}", []).append(sums)
    outside = [name for name in groups if name in found]
    inside = sorted(set(groups) - set(outside), key=lambda one: int(one[len(stack.prefix) :]))
    return [_distance(name, groups[name]) for name in [*outside, *inside]]


def _sums(a: Weights, b: Weights, name: str, advance: Callable[[int], object]) -> _Sums:
    ours, theirs = a.reader(name), b.reader(name)
    size = a.entries[name].size
    width = a.entries[name].nbytes // max(size, 1)
    step = ours.step or theirs.step or PIECE
    largest, changed, totals = 0.0, 0, np.zeros(4)
    for start in range(0, size, step):
        stop = min(start + step, size)
        x = ours.read(start, stop).astype(np.float64)
        y = theirs.read(start, stop).astype(np.float64)
        apart = np.abs(x - y)
        largest = max(largest, float(apart.max()))
        changed += int(np.count_nonzero(apart))
        totals += [
            float((one * two).sum()) for one, two in ((apart, apart), (x, x), (y, y), (x, y))
        ]
        advance((stop - start) * width)
    return _Sums(size, changed, largest, *map(float, totals))


def _distance(name: str, parts: Sequence[_Sums]) -> Distance:
    first = math.fsum(one.first for one in parts)
    second = math.fsum(one.second for one in parts)
    norms = math.sqrt(first * second)
    apart = math.sqrt(math.fsum(one.apart for one in parts))
    return Distance(
        name=name,
        relative=apart / math.sqrt(first) if first else math.inf if apart else 0.0,
        cosine=math.fsum(one.product for one in parts) / norms if norms else math.nan,
        largest=max(one.largest for one in parts),
        changed=sum(one.changed for one in parts) / max(sum(one.size for one in parts), 1),
    )
