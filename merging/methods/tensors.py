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

# Elements made at once: in float64 2 MiB. Between two steps of numpy a thread asks for Python's lock,
# and with smaller blocks two of them wait for it longer than they compute.
BLOCK = 1 << 18


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


def combination(
    tensors: Tensors, coefficients: Sequence[float], *, base: float | None = None
) -> Combine:
    """`sum(c_i * x_i) + base * b`, in float64 and in this order; without `base` the base isn't read.

    One input is read after the other, so that memory doesn't grow with their number.
    """
    terms = list(zip(tensors.inputs, coefficients, strict=True))
    if base is not None and tensors.base is not None:
        terms.append((tensors.base, base))

    def combine(start: int, stop: int) -> Array:
        (read, factor), *others = terms
        total = np.multiply(read(start, stop), factor, dtype=np.float64)
        for read, factor in others:
            value = read(start, stop)
            total += value if factor == 1 else np.multiply(value, factor, dtype=np.float64)
        return total

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
