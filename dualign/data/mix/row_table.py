"""What is remembered of every tokenised row: some bytes each, because there may be millions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dualign.data.seeds import Indices

Chosen = NDArray[np.bool_]
"""whether a row is meant, for each row"""


@dataclass(kw_only=True, slots=True)
class Words:
    """A column of texts of which few differ. `place` has for each row its text's place in `names`."""

    names: list[str]
    place: NDArray[np.uint16]

    def holds(self, name: str) -> Chosen:
        """Which rows have this text."""
        if name not in self.names:
            return np.zeros(len(self.place), dtype=bool)
        return np.asarray(self.place == self.names.index(name))

    def put(self, rows: Indices, name: str) -> None:
        """Give rows another text."""
        if name not in self.names:
            self.names.append(name)
        self.place[rows] = self.names.index(name)

    def counted(self, chosen: Chosen) -> Counter[str]:
        """How many of the chosen rows have each text."""
        counts = np.bincount(self.place[chosen], minlength=len(self.names)).tolist()
        return Counter(
            {name: count for name, count in zip(self.names, counts, strict=True) if count}
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenised:
    """The tokenised rows of all sources; every column has an entry for each row."""

    owner: NDArray[np.int32]
    """the number of the row's source"""
    mode: Words
    code: Words
    """why the row is left out; empty: it isn't"""
    repairs: Words
    """what was done to it, separated by commas"""
    tokens: NDArray[np.int32]
    supervised: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.owner)


def words(column: pa.ChunkedArray) -> Words:
    """An Arrow column of texts."""
    joined = column.dictionary_encode().unify_dictionaries().combine_chunks()
    return Words(
        names=joined.dictionary.to_pylist(), place=joined.indices.to_numpy().astype(np.uint16)
    )


def owners(sizes: Sequence[int]) -> NDArray[np.int32]:
    """The number of the source of each row, for sources of so many rows."""
    return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)


def numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """An Arrow column of numbers that int32 holds."""
    return np.asarray(column.to_numpy(), dtype=np.int32)
