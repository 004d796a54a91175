"""Nearest matrix of low rank (Eckart and Young 1936), and its error.

Shapes: O out, I in, R rank. Everything is float64.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from dualign.errors import MergeError
from dualign.merging.methods.tensors import Array

EXACT_UP_TO = 1536
"""with at most this many rows or columns, all singular values are computed"""
_OVERSAMPLING, _ITERATIONS = 32, 6  # of the randomized range finder
_BLOCK = 1 << 18  # elements of the difference that are in memory at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Truncation:
    """Number of singular values to keep: `rank`, or the fewest with `energy` of the squares' sum.

    Singular values 3, 2, 1 have squares 9, 4, 1: energy 0.9 (of 14) keeps two of them.
    """

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.energy is None):
            raise MergeError("expected a rank or an energy, and not both")
        if self.rank is not None and self.rank < 1:
            raise MergeError(f"rank {self.rank}: expected 1 or more")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise MergeError(f"energy {self.energy}: expected a share above 0 and up to 1")

    def count(self, values: Array, *, floor: float = 1e-14) -> int:
        """Return the number of singular values (largest first) to keep, at least one.

        Values below `floor` times the largest are dropped in any case.
        """
        nonzero = max(int(np.count_nonzero(values > values[0] * floor)), 1)
        if self.rank is not None:
            return min(self.rank, nonzero)
        energies = np.cumsum(np.square(values))
        assert self.energy is not None
        threshold = self.energy * energies[-1] * (1 - 1e-14)
        return min(int(np.searchsorted(energies, threshold)) + 1, nonzero)


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRank:
    """`B @ A`, an approximation of a matrix."""

    B_OR: Array
    A_RI: Array
    norm: float
    """the Frobenius norm of the matrix"""
    error: float
    """the Frobenius norm of the difference"""
    values: Array
    """the singular values of the matrix that are known, the largest first"""


def truncate(B_OK: Array, A_KI: Array, truncation: Truncation) -> LowRank:
    """Return the nearest matrix of lower rank to `B @ A`, without forming the product.

    `B = Q1 R1` and `A^T = Q2 R2` give `B A = Q1 (R1 R2^T) Q2^T`: the singular values are those of
    the [K, K] core. It takes O(K^2 (O + I)) instead of O(O I min(O, I)).
    """
    left, first = np.linalg.qr(B_OK)
    right, second = np.linalg.qr(A_KI.T)
    U, values, Vt = np.linalg.svd(first @ second.T)
    rank = truncation.count(values)
    return LowRank(
        B_OR=left @ (U[:, :rank] * np.sqrt(values[:rank])),
        A_RI=np.sqrt(values[:rank])[:, None] * (Vt[:rank] @ right.T),
        norm=float(np.linalg.norm(values)),
        error=float(np.linalg.norm(values[rank:])),
        values=values,
    )


def approximate(D_OI: Array, truncation: Truncation, *, key: int = 0) -> LowRank:
    """Return the nearest matrix of low rank to a matrix of full rank.

    Exact for a truncation by energy, and if one side is at most EXACT_UP_TO. Otherwise the leading
    directions come from subspace iteration on random vectors, drawn by `key` (Halko, Martinsson and
    Tropp, arXiv 0909.4061, algorithm 4.4). The error is always that of the returned matrix.
    """
    if D_OI.shape[0] > D_OI.shape[1]:
        transposed = approximate(D_OI.T, truncation, key=key)
        return replace(transposed, B_OR=transposed.A_RI.T, A_RI=transposed.B_OR.T)
    basis = None
    if truncation.rank is not None and D_OI.shape[0] > max(EXACT_UP_TO, 2 * truncation.rank):
        basis = _leading_directions(D_OI, truncation.rank, key)
    small = D_OI if basis is None else basis.T @ D_OI
    squares, vectors = np.linalg.eigh(small @ small.T)
    values = np.sqrt(np.maximum(squares[::-1], 0))
    # Below 1e-7 of the largest they are the rounding of the Gram matrix.
    U = vectors[:, ::-1][:, : truncation.count(values, floor=1e-7)]
    if basis is not None:
        U = basis @ U
    roots = np.sqrt(values[: U.shape[1]])
    roots[roots == 0] = 1  # nothing changed
    B_OR, A_RI = U * roots, (U.T @ D_OI) / roots[:, None]
    return LowRank(
        B_OR=B_OR,
        A_RI=A_RI,
        norm=float(np.linalg.norm(D_OI)),
        error=_distance(D_OI, B_OR, A_RI),
        values=values,
    )


def _leading_directions(D_OI: Array, rank: int, key: int) -> Array:
    """Return an orthonormal basis [O, rank + _OVERSAMPLING] of the columns' leading directions."""
    generator = np.random.Generator(np.random.Philox(key=key))
    basis = D_OI @ generator.standard_normal((D_OI.shape[1], rank + _OVERSAMPLING))
    for _ in range(_ITERATIONS):
        basis = np.linalg.qr(basis)[0]
        basis = D_OI @ np.linalg.qr(D_OI.T @ basis)[0]
    orthonormal: Array = np.linalg.qr(basis)[0]
    return orthonormal


def _distance(D_OI: Array, B_OR: Array, A_RI: Array) -> float:
    """Return the Frobenius norm of `D - B @ A`, some rows at a time."""
    step = max(_BLOCK // D_OI.shape[1], 1)
    total = 0.0
    for start in range(0, len(D_OI), step):
        rest = D_OI[start : start + step] - B_OR[start : start + step] @ A_RI
        total += float(np.square(rest).sum())
    return math.sqrt(total)
