"""One tensor of every input, read block by block: what every method works on.

A method looks at the blocks as often as it must (norms, thresholds) and returns a `Combine`, which
makes any stretch of the merged tensor. So memory holds blocks, never whole tensors, and the methods
know nothing of files. Elements are counted in row-major order.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Read = Callable[[int, int], Array]
"""the elements [start, stop) of an input, in float32 or float64"""
Combine = Callable[[int, int], Array]
"""the elements [start, stop) of the merged tensor, in float64"""

BLOCK = 1 << 15  # elements; in float64 that is 256 KiB, which stays in the processor's cache


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensors:
    """One tensor of every model, in the order of the config, and that of the base model."""

    shape: tuple[int, ...]
    inputs: tuple[Read, ...]
    base: Read | None = None
    streams: tuple[int, ...] = ()
    """for each input the 128-bit key of its random numbers"""
    block: int = field(default=BLOCK)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def columns(self) -> int:
        """The length of a row: the last dimension; a vector is one row."""
        return self.shape[-1] if self.shape else 1

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Whole rows, about `block` elements at a time."""
        step = row_step(self.shape, self.block)
        for start in range(0, self.size, step):
            yield start, min(start + step, self.size)

    def deltas(self, start: int, stop: int) -> list[Array]:
        """Each input minus the base, float64; without a base the inputs themselves."""
        found = [read(start, stop).astype(np.float64) for read in self.inputs]
        if self.base is not None:
            base = self.base(start, stop).astype(np.float64)
            for one in found:
                one -= base
        return found

    def delta(self, which: int, start: int, stop: int) -> Array:
        """One input minus the base, float64."""
        assert self.base is not None
        found = self.inputs[which](start, stop).astype(np.float64)
        found -= self.base(start, stop).astype(np.float64)
        return found


def row_step(shape: Sequence[int], block: int) -> int:
    """The elements in as many whole rows as fit into `block`; at least one row."""
    columns = max(shape[-1] if shape else 1, 1)
    return max(block // columns, 1) * columns


def weighted(values: Sequence[Array], weights: Sequence[float]) -> Array:
    """`sum(w_i * x_i)` in float64, in the order given."""
    total = _times(values[0], weights[0])
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total += _times(value, weight)
    return total


def _times(value: Array, weight: float) -> Array:
    """A new array."""
    return value.astype(np.float64) if weight == 1 else np.multiply(value, weight, dtype=np.float64)


def combination(
    tensors: Tensors, coefficients: Sequence[float], *, base: float | None = None
) -> Combine:
    """`sum(c_i * x_i) + base * b`; without `base` the base isn't read."""

    def combine(start: int, stop: int) -> Array:
        values = [read(start, stop) for read in tensors.inputs]
        if base is None or tensors.base is None:
            return weighted(values, coefficients)
        return weighted([*values, tensors.base(start, stop)], [*coefficients, base])

    return combine


def whole(combine: Combine, shape: tuple[int, ...], *, block: int = BLOCK) -> Array:
    """The merged tensor in one piece."""
    step = row_step(shape, block)
    size = prod(shape)
    parts = [combine(start, min(start + step, size)) for start in range(0, size, step)]
    return np.concatenate(parts).reshape(shape) if parts else np.zeros(shape)


def in_memory(
    inputs: Sequence[Array],
    base: Array | None = None,
    *,
    streams: Sequence[int] = (),
    block: int = BLOCK,
) -> Tensors:
    """Arrays as the methods want them."""

    def reader(array: Array) -> Read:
        flat = array.reshape(-1)
        return lambda start, stop: flat[start:stop]

    return Tensors(
        shape=inputs[0].shape,
        inputs=tuple(map(reader, inputs)),
        base=None if base is None else reader(base),
        streams=tuple(streams),
        block=block,
    )
