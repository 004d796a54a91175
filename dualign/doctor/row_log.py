"""Columns of numbers for all rows of a survey, so that memory stays small."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dualign.data.mix.row_table import CategoryColumn, RowTable
from dualign.data.tokens.encoding import EncodedRow


@dataclass(kw_only=True, slots=True)
class _CategoryBuilder:
    """A categorical string column that grows."""

    categories: dict[str, int] = field(default_factory=dict)
    codes: "array[int]" = field(default_factory=lambda: array("H"))

    def append(self, text: str) -> None:
        self.codes.append(self.categories.setdefault(text, len(self.categories)))

    def column(self) -> CategoryColumn:
        codes = np.array(self.codes, dtype=np.uint16)
        return CategoryColumn(categories=list(self.categories), codes=codes)


@dataclass(kw_only=True, slots=True)
class RowLog:
    """One entry for each row, in the order of the sources and of their rows."""

    source_index: "array[int]" = field(default_factory=lambda: array("i"))
    """index of the row's source"""
    row: "array[int]" = field(default_factory=lambda: array("i"))
    """its index in the source"""
    tokens: "array[int]" = field(default_factory=lambda: array("i"))
    supervised: "array[int]" = field(default_factory=lambda: array("i"))
    hashes: "array[int]" = field(default_factory=lambda: array("q"))
    """hash of mode and text; 0 for a refused row"""
    mode: _CategoryBuilder = field(default_factory=_CategoryBuilder)
    code: _CategoryBuilder = field(default_factory=_CategoryBuilder)
    """why the row was refused; empty if it wasn't"""
    repairs: _CategoryBuilder = field(default_factory=_CategoryBuilder)

    def add(self, source_index: int, row: EncodedRow) -> None:
        """Append a row, kept or refused."""
        entry = row.entry
        texts = tuple((rendered.mode, rendered.text) for rendered in row.rendered)
        self.source_index.append(source_index)
        self.row.append(row.row)
        self.tokens.append(entry["tokens"])
        self.supervised.append(entry["supervised"])
        self.hashes.append(0 if row.fault else hash(texts))
        self.mode.append(entry["mode"])
        self.code.append(entry["code"])
        self.repairs.append(entry["repairs"])

    def row_table(self) -> RowTable:
        """Return the columns that the row statistics are made of."""
        return RowTable(
            source_index=_column(self.source_index),
            mode=self.mode.column(),
            code=self.code.column(),
            repairs=self.repairs.column(),
            tokens=_column(self.tokens),
            supervised=_column(self.supervised),
        )

    def repeats(self) -> Mapping[int, int]:
        """Return index of a row -> index of the first row with the same hash.

        Hashes 7 0 7 9 7 0 give {2: 0, 4: 0}: 0 stands for refused rows.
        """
        hashes = np.array(self.hashes, dtype=np.int64)
        _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        earlier = first[inverse]
        repeats = np.flatnonzero((earlier != np.arange(len(hashes))) & (hashes != 0))
        return dict(zip(repeats.tolist(), earlier[repeats].tolist(), strict=True))


def _column(values: "array[int]") -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)
