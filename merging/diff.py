"""Distance between two checkpoints, by tensor or by layer."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dualign.checkpoints.checkpoint import Weights
from dualign.checkpoints.shards import PIECE, cpu_count
from dualign.errors import MergeError
from dualign.merging.layers import find_stack
from dualign.terminal import progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Distance:
    """Distance between two tensors, or between two groups of tensors."""

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
    """Sums over the elements of a tensor; those of a group are their sums."""

    size: int
    changed: int
    largest: float
    square: float
    """sum((a - b)^2)"""
    first: float
    """sum(a^2)"""
    second: float
    """sum(b^2)"""
    product: float
    """sum(a b)"""


def distances(a: Weights, b: Weights, *, by_layer: bool = False) -> list[Distance]:
    """Return the distance of each tensor, in the order of `a`.

    With `by_layer` that of each layer, and of each tensor outside of the layers.

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
        by_tensor = dict(zip(a.entries, parts, strict=True))
    if not by_layer:
        return [_distance(name, [sums]) for name, sums in by_tensor.items()]
    stack = find_stack(a.entries)
    groups: dict[str, list[_Sums]] = {}
    for name, sums in by_tensor.items():
        layer = stack.layer(name)
        groups.setdefault(name if layer is None else f"{stack.prefix}{layer}", []).append(sums)
    outside = [name for name in groups if name in by_tensor]
    layers = sorted(set(groups) - set(outside), key=lambda name: int(name[len(stack.prefix) :]))
    return [_distance(name, groups[name]) for name in [*outside, *layers]]


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
        gap = np.abs(x - y)
        largest = max(largest, float(gap.max()))
        changed += int(np.count_nonzero(gap))
        totals += [float((u * v).sum()) for u, v in ((gap, gap), (x, x), (y, y), (x, y))]
        advance((stop - start) * width)
    return _Sums(size, changed, largest, *map(float, totals))


def _distance(name: str, parts: Sequence[_Sums]) -> Distance:
    first = math.fsum(part.first for part in parts)
    second = math.fsum(part.second for part in parts)
    norms = math.sqrt(first * second)
    gap = math.sqrt(math.fsum(part.square for part in parts))
    return Distance(
        name=name,
        relative=gap / math.sqrt(first) if first else math.inf if gap else 0.0,
        cosine=math.fsum(part.product for part in parts) / norms if norms else math.nan,
        largest=max(part.largest for part in parts),
        changed=sum(part.changed for part in parts) / max(sum(part.size for part in parts), 1),
    )


def plot_distances(distances: Sequence[Distance], file: Path, *, title: str) -> None:
    """Draw the relative distances as bars, one for each line of `dualign diff`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.5 + 0.22 * len(distances)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(
        [distance.name for distance in distances], [distance.relative for distance in distances]
    )
    axes.invert_yaxis()
    axes.set_xlabel("|a - b| / |a|")
    axes.set_title(title, fontsize=9)
    figure.savefig(file)
