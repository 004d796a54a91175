"""Random choices of rows and of their order. Everything follows from one seed.

Each random choice has a generator of its own, made from the seed, the stream's name and a number,
so that adding a source or a validation split doesn't change the other choices.
"""

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualign.data.config import SourceConfig
from dualign.errors import DataError

Indices = NDArray[np.integer[Any]]
"""Row indices (int32 where there is one for each row)."""


def rng(seed: int, stream: str, number: int = 0) -> np.random.Generator:
    """Return the random generator of one choice."""
    return np.random.default_rng([seed, zlib.crc32(stream.encode()), number])


def indices_of(mask: NDArray[np.bool_]) -> Indices:
    """Return the indices at which `mask` is true, ascending."""
    return np.flatnonzero(mask).astype(np.int32)


def rows_to_read(count: int, source: SourceConfig, random: np.random.Generator) -> Indices:
    """Return the rows of a source of `count` that are tokenized, ascending: all of them, at most
    `rows`, or as many as a weight below 1 asks for.

    `tokens` and `share` are applied later, when lengths are known: they need all rows.

    Raises:
        DataError: a weight leaves none.
    """
    if source.rows is None:
        rows = weighted_rows(count, source.weight or 1.0, random)
    else:
        rows = _sample(random, count, min(source.rows, count))
    if not len(rows):
        raise DataError(
            f"source {source.path!r}: weight {source.weight} leaves none of {count} rows"
        )
    return rows


def weighted_rows(count: int, weight: float, random: np.random.Generator) -> Indices:
    """Return the rows that a weight keeps, ascending: all, or for a weight below 1 that fraction."""
    return _sample(random, count, count if weight >= 1 else round(count * weight))


def repeated(rows: Indices, weight: float, random: np.random.Generator) -> Indices:
    """Return the rows as often as a weight above 1 asks for, shuffled pass by pass.

    weight 2.5 -> all rows, all rows again, a random half
    """
    passes = [random.permutation(rows) for _ in range(max(1, int(weight)))]
    extra = round((weight - int(weight)) * len(rows)) if weight > 1 else 0
    if extra:
        passes.append(random.permutation(rows)[:extra])
    return np.concatenate(passes) if passes[1:] else passes[0]


def held_out(count: int, validation_rows: float, random: np.random.Generator) -> Indices:
    """Return the validation rows among `count` kept ones: so many, or below 1 that part of them.

    Raises:
        DataError: none would be left to train on.
    """
    size = int(validation_rows)
    if 0 < validation_rows < 1:
        size = max(1, round(validation_rows * count))
    if size and size >= count:
        raise DataError(
            f"data.validation_rows is {validation_rows}, but only {count} rows were kept: "
            "nothing would be left to train on. Ask for fewer."
        )
    return _sample(random, count, size)


def _sample(random: np.random.Generator, count: int, size: int) -> Indices:
    """Return `size` of `count` row indices, ascending."""
    rows = np.arange(count, dtype=np.int32)
    return rows if size == count else np.sort(random.permutation(rows)[:size])
