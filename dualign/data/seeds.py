"""Which rows are used and in which order. Everything follows from one seed.

Each draw has a generator of its own, made from the seed, the draw's name and its number, so that
adding a source or a validation split doesn't change the other draws.
"""

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualign.data.config import SourceConfig
from dualign.errors import DataError

Indices = NDArray[np.integer[Any]]
"""Places of rows, in int32 where there is one for each row."""


def generator(seed: int, draw: str, number: int = 0) -> np.random.Generator:
    """The random generator of one draw."""
    return np.random.default_rng([seed, zlib.crc32(draw.encode()), number])


def places(chosen: NDArray[np.bool_]) -> Indices:
    """Where `chosen` is true, ascending."""
    return np.flatnonzero(chosen).astype(np.int32)


def drawn_rows(count: int, weight: float, random: np.random.Generator) -> Indices:
    """The rows that a weight keeps, ascending: all, or for a weight below 1 that fraction."""
    if weight >= 1:
        return np.arange(count, dtype=np.int32)
    return _first(random, count, round(count * weight))


def _first(random: np.random.Generator, count: int, wanted: int) -> Indices:
    """So many of `count` rows, ascending."""
    return np.sort(random.permutation(np.arange(count, dtype=np.int32))[:wanted])


def source_rows(count: int, source: SourceConfig, random: np.random.Generator) -> Indices:
    """The rows of a source of `count` that are tokenised, ascending. `tokens` and `share` are met
    later, when lengths are known: they need all.
    """
    if source.rows is None:
        drawn = drawn_rows(count, source.weight or 1.0, random)
    elif source.rows <= count:
        drawn = _first(random, count, source.rows)
    else:
        raise DataError(
            f"source {source.path!r}: rows: {source.rows:,} asked, it holds {count:,}. "
            "Ask for fewer, or repeat it with a weight above 1."
        )
    if not len(drawn):
        raise DataError(
            f"source {source.path!r}: weight {source.weight} leaves none of {count} rows"
        )
    return drawn


def repeated(rows: Indices, weight: float, random: np.random.Generator) -> Indices:
    """The rows as often as a weight above 1 asks for, in random order, pass by pass: 2.5 = all of
    them, all of them again, and a random half.
    """
    passes = [random.permutation(rows) for _ in range(max(1, int(weight)))]
    extra = round((weight - int(weight)) * len(rows)) if weight > 1 else 0
    if extra:
        passes.append(random.permutation(rows)[:extra])
    return np.concatenate(passes) if passes[1:] else passes[0]


def held_out(count: int, validation_rows: int, random: np.random.Generator) -> Indices:
    """The validation rows among `count` kept ones."""
    if validation_rows and validation_rows >= count:
        raise DataError(
            f"data.validation_rows is {validation_rows}, but only {count} rows were kept: "
            "nothing would be left to train on. Ask for fewer."
        )
    return _first(random, count, validation_rows)
