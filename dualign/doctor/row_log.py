"""What is remembered of every row of a survey: a few numbers, so that memory stays small."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dualign.data.mix.row_table import CategoryColumn, RowTable
from dualign.data.tokens.encoding import EncodedRow


@dataclass(kw_only=True, slots=True)
class _Texts:
    """A column of texts of which few differ."""

    names: dict[str, int] = field(default_factory=dict)
    places: "array[int]" = field(default_factory=lambda: array("H"))

    def append(self, text: str) -> None:
        self.places.append(self.names.setdefault(text, len(self.names)))

    def words(self) -> CategoryColumn:
        return CategoryColumn(
            categories=list(self.names), codes=np.array(self.places, dtype=np.uint16)
        )


@dataclass(kw_only=True, slots=True)
class RowLog:
    """Columns with an entry for each row, in the order of the sources and of their rows."""

    owner: "array[int]" = field(default_factory=lambda: array("i"))
    """the number of the row's source"""
    row: "array[int]" = field(default_factory=lambda: array("i"))
    """its place in the source"""
    tokens: "array[int]" = field(default_factory=lambda: array("i"))
    supervised: "array[int]" = field(default_factory=lambda: array("i"))
    hashes: "array[int]" = field(default_factory=lambda: array("q"))
    """of mode and text; 0 for a row that was refused"""
    mode: _Texts = field(default_factory=_Texts)
    code: _Texts = field(default_factory=_Texts)
    """why the row was refused; empty: it wasn't"""
    repairs: _Texts = field(default_factory=_Texts)

    def add(self, owner: int, row: EncodedRow) -> None:
        """A row of source number `owner`, kept or refused."""
        entry, texts = row.entry, tuple((one.mode, one.text) for one in row.rendered)
        self.owner.append(owner)
        self.row.append(row.row)
        self.tokens.append(entry["tokens"])
        self.supervised.append(entry["supervised"])
        self.hashes.append(0 if row.fault else hash(texts))
        self.mode.append(entry["mode"])
        self.code.append(entry["code"])
        self.repairs.append(entry["repairs"])

    def row_table(self) -> RowTable:
        """What an account is made of."""
        return RowTable(
            source_index=_column(self.owner),
            mode=self.mode.words(),
            code=self.code.words(),
            repairs=self.repairs.words(),
            tokens=_column(self.tokens),
            supervised=_column(self.supervised),
        )

    def repeats(self) -> Mapping[int, int]:
        """Place of a row -> place of the earlier row with the same hash."""
        hashes = np.array(self.hashes, dtype=np.int64)
        _, first, where = np.unique(hashes, return_index=True, return_inverse=True)
        again = np.flatnonzero((first[where] != np.arange(len(hashes))) & (hashes != 0))
        return dict(zip(again.tolist(), first[where[again]].tolist(), strict=True))


def _column(values: "array[int]") -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)
