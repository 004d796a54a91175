"""What is remembered of every row of a survey: a few numbers, so that memory stays small."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dualign.data.mix.draws import Indices
from dualign.data.tokens.encoding import Encoded


@dataclass(kw_only=True, slots=True)
class RowLog:
    """Columns with an entry for each row, in the order of the sources and of their rows."""

    owner: "array[int]" = field(default_factory=lambda: array("q"))
    """the number of the row's source"""
    row: "array[int]" = field(default_factory=lambda: array("q"))
    """its place in the source"""
    tokens: "array[int]" = field(default_factory=lambda: array("q"))
    supervised: "array[int]" = field(default_factory=lambda: array("q"))
    hashes: "array[int]" = field(default_factory=lambda: array("q"))
    """of mode and text; 0 for a row that was refused"""
    mode: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    """why the row was refused; empty: it wasn't"""
    repairs: list[str] = field(default_factory=list)

    def add(self, owner: int, row: Encoded) -> None:
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

    def about(self) -> dict[str, Any]:
        """The columns that an account is made of."""
        return {
            "mode": np.array(self.mode, dtype=object),
            "code": np.array(self.code, dtype=object),
            "repairs": np.array(self.repairs, dtype=object),
            "tokens": _column(self.tokens),
            "supervised": _column(self.supervised),
        }

    def owners(self) -> Indices:
        return _column(self.owner)

    def repeats(self) -> Mapping[int, int]:
        """Place of a row -> place of the earlier row with the same hash."""
        hashes = _column(self.hashes)
        _, first, where = np.unique(hashes, return_index=True, return_inverse=True)
        again = np.flatnonzero((first[where] != np.arange(len(hashes))) & (hashes != 0))
        return dict(zip(again.tolist(), first[where[again]].tolist(), strict=True))


def _column(values: "array[int]") -> Indices:
    return np.array(values, dtype=np.int64)
