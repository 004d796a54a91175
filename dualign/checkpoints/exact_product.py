"""A matrix product with the same bits on any machine, with any BLAS, threads and blocks.

BLAS sums in an order of its own: another one for each processor, shape and number of threads, with
or without fused multiplication. Here every sum is exact in float64, so its order doesn't matter.
Each factor is cut into two slices of few bits, relative to the largest number of its row (left) or
column (right), after Ozaki et al. 2012, "Error-free transformations of matrix multiplication":

    left = L1 + L2 + ...    right = R1 + R2 + ...    product = L1 R1 + (L2 R1 + L1 R2) + ...

With `2 bits + log2(rank) <= 53` a sum of `rank` products of slices fits into float64's 53 bits.
What is left out is below `rank * 2^(1 - 2 bits)` of the largest products: 2^-43 for rank 16, 2^-35
for rank 256, where float32 keeps 2^-24.

Shapes: O rows, I columns, R rank; T tiles of N columns, B blocks of M rows.
"""

from collections.abc import Callable

import numpy as np

from dualign.checkpoints.dtypes import Array

_MANTISSA = 53
# OpenBLAS starts threads of its own for more than 2^18 multiplications, and they compete with ours
# for the same processors.
_MULTIPLICATIONS = 1 << 18
_TILE_ROWS, _TILE_COLUMNS, _TILE_RANK = 32, 128, 256  # at most
_GROUP = 1 << 16  # elements whose sums stay in the processor's cache


class ExactProduct:
    """`left @ right`, some rows at a time."""

    def __init__(self, left: Callable[[int, int], Array], right_RI: Array) -> None:
        """Slice the right factor; `left` gives the rows [start, stop) of the left one, float64."""
        self.rank, self.columns = right_RI.shape
        self.left = left
        terms = min(self.rank, _TILE_RANK)
        self.bits = (_MANTISSA - (terms - 1).bit_length()) // 2
        width = min(_MULTIPLICATIONS // (_TILE_ROWS * terms), _TILE_COLUMNS)
        slices = np.concatenate(_slices(right_RI, axis=0, bits=self.bits))
        self.tiles = _tiles(slices, width)

    def rows(self, start: int, stop: int) -> Array:
        """Return the rows [start, stop) of the product."""
        height = min(stop - start, _TILE_ROWS)
        padded = np.zeros((-(-(stop - start) // height) * height, self.rank))
        padded[: stop - start] = self.left(start, stop)
        first, second = _slices(padded, axis=1, bits=self.bits)
        rest = np.concatenate([second, first], axis=1)
        count, _, width = self.tiles.shape
        product = np.empty((len(padded), count * width))
        step = max(_GROUP // (len(padded) * width), 1)
        part = np.empty((len(padded), step * width))
        for i in range(0, count, step):
            tiles = self.tiles[i : i + step]
            total = product[:, i * width : (i + step) * width]
            self._add(first, tiles[:, : self.rank], total, None, height)
            self._add(rest, tiles, total, part[:, : total.shape[1]], height)
            total += 0.0  # kernels differ in the sign of a zero
        return product[: stop - start, : self.columns]

    def _add(
        self, left_OR: Array, tiles_TRN: Array, total: Array, part: Array | None, height: int
    ) -> None:
        """Add the exact products of a few ranks each to the total; the first one without `part`."""
        for k in range(0, left_OR.shape[1], _TILE_RANK):
            into = total if part is None and k == 0 else part
            if into is None:
                into = part = np.empty_like(total)
            np.matmul(
                left_OR.reshape(-1, height, left_OR.shape[1])[None, ..., k : k + _TILE_RANK],
                tiles_TRN[:, None, k : k + _TILE_RANK],
                out=into.reshape(-1, height, len(tiles_TRN), tiles_TRN.shape[2]).transpose(
                    2, 0, 1, 3
                ),
            )
            if into is part:
                total += part


def _slices(matrix: Array, *, axis: int, bits: int) -> list[Array]:
    """Return the leading `bits` of each number and the next `bits`, counted from the largest number
    along `axis`.

    Adding 1.5 * 2^52 steps of a size and subtracting it again rounds to whole steps.
    """
    _, exponent = np.frexp(np.abs(matrix).max(axis=axis, keepdims=True))
    parts = []
    for place in (bits, 2 * bits):
        step = np.ldexp(1.5, exponent - place + _MANTISSA - 1)
        parts.append((matrix + step) - step)
        matrix = matrix - parts[-1]
    return parts


def _tiles(matrix_RI: Array, width: int) -> Array:
    """Cut a matrix into tiles [T, R, N], the last one filled up with zeros."""
    rank, columns = matrix_RI.shape
    count = -(-columns // width)
    padded = np.zeros((rank, count * width))
    padded[:, :columns] = matrix_RI
    return np.ascontiguousarray(padded.reshape(rank, count, width).transpose(1, 0, 2))
