"""One tensor of every input, read block by block: the input of every method.

A method reads the blocks as often as it must (norms, thresholds) and returns a `Combine`, which
computes any range of the merged tensor. So memory holds blocks, never whole tensors, and the
methods know nothing of files. Elements are counted in row-major order.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Read = Callable[[int, int], Array]
"""(start, stop) -> these elements of an input, in float32 or float64"""
Combine = Callable[[int, int], Array]
"""(start, stop) -> these elements of the merged tensor, in float64"""

# Elements computed at once: 2 MiB in float64. Between two steps of numpy a thread takes Python's
# lock, and with smaller blocks two threads wait for it longer than they compute.
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
        """Length of a row: the last dimension; a vector is one row."""
        return self.shape[-1] if self.shape else 1

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of whole rows, about `block` elements at a time."""
        step = row_step(self.shape, self.block)
        for start in range(0, self.size, step):
            yield start, min(start + step, self.size)

    def deltas(self, start: int, stop: int) -> list[Array]:
        """Return each input minus the base, float64; without a base the inputs themselves."""
        blocks = [read(start, stop).astype(np.float64) for read in self.inputs]
        if self.base is not None:
            base = self.base(start, stop).astype(np.float64)
            for block in blocks:
                block -= base
        return blocks

    def delta(self, index: int, start: int, stop: int) -> Array:
        """Return one input minus the base, float64."""
        assert self.base is not None
        block = self.inputs[index](start, stop).astype(np.float64)
        block -= self.base(start, stop).astype(np.float64)
        return block


def row_step(shape: Sequence[int], block: int) -> int:
    """Return the elements in as many whole rows as fit into `block`; at least one row."""
    columns = max(shape[-1] if shape else 1, 1)
    return max(block // columns, 1) * columns


def combination(
    tensors: Tensors, coefficients: Sequence[float], *, base: float | None = None
) -> Combine:
    """`sum(c_i * x_i) + base * b`, in float64, in this order; without `base` b isn't read.

    Inputs are read one after the other, so memory doesn't grow with their number.
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


def materialize(combine: Combine, shape: tuple[int, ...], *, block: int = BLOCK) -> Array:
    """Compute the whole merged tensor."""
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
    """Wrap arrays as `Tensors`."""

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
