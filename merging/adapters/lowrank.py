"""The nearest matrix of low rank (Eckart and Young 1936), and how near it is.

Shapes: O out, I in, R rank. Everything is float64.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from dualign.errors import MergeError
from dualign.merging.methods.tensors import Array

EXACT_UP_TO = 1536
"""up to this many rows or columns every singular value is computed"""
_SPARE, _ROUNDS = 32, 6  # of the randomised range finder
_LOOKED_AT = 1 << 18  # elements at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """Where the singular values are cut off: at a rank, or where the rest holds little.

    `energy` keeps as few as hold that share of the sum of their squares.
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
        """How many of the singular values, the largest first, are kept: one at least.

        None is kept that is below `floor` times the largest.
        """
        there = max(int(np.count_nonzero(values > values[0] * floor)), 1)
        if self.rank is not None:
            return min(self.rank, there)
        held = np.cumsum(np.square(values))
        assert self.energy is not None
        return min(int(np.searchsorted(held, self.energy * held[-1] * (1 - 1e-14))) + 1, there)


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRank:
    """`B @ A`, near to a matrix."""

    B_OR: Array
    A_RI: Array
    norm: float
    """the Frobenius norm of the matrix"""
    error: float
    """the Frobenius norm of what is missing"""
    values: Array
    """the singular values of the matrix, the largest first, as far as they are known"""


def truncate(B_OK: Array, A_KI: Array, cut: Cut) -> LowRank:
    """The nearest matrix of lower rank to `B @ A`, which is never formed.

    `B = Q1 R1` and `A^T = Q2 R2` make `B A = Q1 (R1 R2^T) Q2^T`: the singular values are those of the K x K core
    (O(K^2 (O + I)) instead of O(O I min(O, I))).
    """
    left, first = np.linalg.qr(B_OK)
    right, second = np.linalg.qr(A_KI.T)
    U, values, Vt = np.linalg.svd(first @ second.T)
    kept = cut.count(values)
    return LowRank(
        B_OR=left @ (U[:, :kept] * np.sqrt(values[:kept])),
        A_RI=np.sqrt(values[:kept])[:, None] * (Vt[:kept] @ right.T),
        norm=float(np.linalg.norm(values)),
        error=float(np.linalg.norm(values[kept:])),
        values=values,
    )


def approximate(D_OI: Array, cut: Cut, *, key: int = 0) -> LowRank:
    """The nearest matrix of low rank to one that has all ranks.

    Exact for a cut by energy, and where one side is at most EXACT_UP_TO. Else the leading directions come from subspace
    iteration on random vectors, drawn by `key` (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4). The error
    is that of what is returned in any case.
    """
    if D_OI.shape[0] > D_OI.shape[1]:
        turned = approximate(D_OI.T, cut, key=key)
        return replace(turned, B_OR=turned.A_RI.T, A_RI=turned.B_OR.T)
    basis = None
    if cut.rank is not None and D_OI.shape[0] > max(EXACT_UP_TO, 2 * cut.rank):
        basis = _leading(D_OI, cut.rank, key)
    small = D_OI if basis is None else basis.T @ D_OI
    squares, vectors = np.linalg.eigh(small @ small.T)
    values = np.sqrt(np.maximum(squares[::-1], 0))
    U = vectors[:, ::-1][
        :, : cut.count(values, floor=1e-7)
    ]  # below that they are the Gram matrix's rounding
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


def _leading(D_OI: Array, rank: int, key: int) -> Array:
    """An orthonormal basis [O, rank + spare] that holds the leading directions of the columns."""
    generator = np.random.Generator(np.random.Philox(key=key))
    basis = D_OI @ generator.standard_normal((D_OI.shape[1], rank + _SPARE))
    for _ in range(_ROUNDS):
        basis = np.linalg.qr(basis)[0]
        basis = D_OI @ np.linalg.qr(D_OI.T @ basis)[0]
    found: Array = np.linalg.qr(basis)[0]
    return found


def _distance(D_OI: Array, B_OR: Array, A_RI: Array) -> float:
    step = max(_LOOKED_AT // D_OI.shape[1], 1)
    total = 0.0
    for start in range(0, len(D_OI), step):
        apart = D_OI[start : start + step] - B_OR[start : start + step] @ A_RI
        total += float(np.square(apart).sum())
    return math.sqrt(total)
