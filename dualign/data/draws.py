"""Which rows are used and in which order. Everything follows from one seed.

Each draw has a generator of its own, made from the seed, the draw's name and its number, so that
adding a source or a validation split doesn't change the other draws.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

from dualign.errors import DataError

Indices = NDArray[np.int64]


def generator(seed: int, draw: str, number: int = 0) -> np.random.Generator:
    """The random generator of one draw."""
    return np.random.default_rng([seed, zlib.crc32(draw.encode()), number])


def drawn_rows(count: int, weight: float, random: np.random.Generator) -> Indices:
    """The rows that a weight keeps, ascending: all, or for a weight below 1 that fraction."""
    if weight >= 1:
        return np.arange(count)
    return np.sort(random.permutation(count)[: round(count * weight)])


def repeated(rows: Indices, weight: float, random: np.random.Generator) -> Indices:
    """The rows as often as a weight above 1 asks for: 2.5 = all of them twice, and a random half
    once more.
    """
    if weight <= 1:
        return rows
    whole = int(weight)
    extra = random.permutation(rows)[: round((weight - whole) * len(rows))]
    return np.concatenate([np.tile(rows, whole), np.sort(extra)])


def held_out(count: int, validation_rows: int, random: np.random.Generator) -> Indices:
    """The validation rows among `count` kept ones."""
    if validation_rows and validation_rows >= count:
        raise DataError(
            f"data.validation_rows is {validation_rows}, but only {count} rows were kept: "
            "nothing would be left to train on. Ask for fewer."
        )
    return np.sort(random.permutation(count)[:validation_rows])
