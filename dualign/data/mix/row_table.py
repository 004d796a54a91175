"""The tokenized rows of all sources as columns, and their counts for run.json.

A row takes some bytes only, because there may be millions.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dualign.data.conversation import Group
from dualign.data.seeds import Indices

Mask = NDArray[np.bool_]
"""An entry for each row."""


@dataclass(kw_only=True, slots=True)
class CategoryColumn:
    """A categorical string column: row i holds `categories[codes[i]]`."""

    categories: list[str]
    codes: NDArray[np.uint16]

    @classmethod
    def from_arrow(cls, column: pa.ChunkedArray) -> "CategoryColumn":
        encoded = column.dictionary_encode().unify_dictionaries().combine_chunks()
        return cls(
            categories=encoded.dictionary.to_pylist(),
            codes=encoded.indices.to_numpy().astype(np.uint16),
        )

    def equals(self, category: str) -> Mask:
        """Return the mask of the rows of a category."""
        if category not in self.categories:
            return np.zeros(len(self.codes), dtype=bool)
        return np.asarray(self.codes == self.categories.index(category))

    def assign(self, rows: Indices, category: str) -> None:
        """Change the category of rows."""
        if category not in self.categories:
            self.categories.append(category)
        self.codes[rows] = self.categories.index(category)

    def counts(self, mask: Mask) -> Counter[str]:
        """Return how many rows of the mask each category has; categories without any are left out."""
        counts = np.bincount(self.codes[mask], minlength=len(self.categories)).tolist()
        pairs = zip(self.categories, counts, strict=True)
        return Counter({category: count for category, count in pairs if count})


@dataclass(frozen=True, kw_only=True, slots=True)
class RowTable:
    """The tokenized rows of all sources; every column has an entry for each row."""

    source_index: NDArray[np.int32]
    mode: CategoryColumn
    code: CategoryColumn
    """the reason for leaving the row out; empty for a kept row"""
    repairs: CategoryColumn
    """the names of the row's repairs, separated by commas"""
    tokens: NDArray[np.int32]
    supervised: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.source_index)


@dataclass(kw_only=True, slots=True)
class RowStats:
    """The rows of one source and mode. `examples`, `tokens`, `supervised` and `longest` are of the
    rows trained on, repeats included.
    """

    source: str
    mode: str
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    validation: int = 0
    repeats: int = 0
    examples: int = 0
    tokens: int = 0
    supervised: int = 0
    longest: int = 0


def group_rows(rows: RowTable, labels: Sequence[str]) -> tuple[Indices, list[Group]]:
    """Return the group of each row, as an index in the list of all groups, and that list.

    Groups come in the order of their first rows. `labels` are the names of the sources.
    """
    modes = rows.mode.categories
    keys = rows.source_index * len(modes) + rows.mode.codes
    first = {key: int((keys == key).argmax()) for key in np.flatnonzero(np.bincount(keys)).tolist()}
    ordered = sorted(first, key=first.__getitem__)
    index = np.zeros(len(labels) * len(modes), dtype=np.int32)
    index[ordered] = np.arange(len(ordered))
    return index[keys], [(modes[key % len(modes)], labels[key // len(modes)]) for key in ordered]


def count_rows(
    rows: RowTable,
    group: Indices,
    groups: Sequence[Group],
    train: Indices,
    validation: Indices,
    untokenized: Mapping[Group, Counter[str]],
) -> list[RowStats]:
    """Return the statistics of each group.

    `train` and `validation` are row indices. `untokenized` counts the rows that were left out
    before they were tokenized, by the reason for it.
    """
    stats = {
        key: _count_group(key, rows, group == number, train[group[train] == number], validation)
        for number, key in enumerate(groups)
    }
    for key, counts in untokenized.items():
        stats.setdefault(key, RowStats(mode=key[0], source=key[1])).dropped.update(counts)
    return list(stats.values())


def _count_group(
    key: Group, rows: RowTable, mask: Mask, train: Indices, validation: Indices
) -> RowStats:
    codes = rows.code.counts(mask)
    kept = codes.pop("", 0)
    repaired: Counter[str] = Counter()
    for repairs, count in rows.repairs.counts(mask & rows.code.equals("")).items():
        repaired.update(dict.fromkeys(filter(None, repairs.split(",")), count))
    once = np.zeros(len(rows), dtype=bool)
    once[train] = True
    return RowStats(
        mode=key[0],
        source=key[1],
        kept=kept,
        dropped=codes,
        repaired=repaired,
        validation=int(mask[validation].sum()),
        repeats=len(train) - int(once.sum()),
        examples=len(train),
        tokens=int(rows.tokens[train].sum()),
        supervised=int(rows.supervised[train].sum()),
        longest=int(rows.tokens[train].max(initial=0)),
    )


def summarize_rows(stats: Iterable[RowStats]) -> dict[str, Any]:
    """Return ROWS of run.json: in = kept + dropped, in total and for each source and mode.

    `kept` counts rows once. `validation` of them are held out; the others are trained on, `repeats`
    of them again: examples = kept - validation + repeats. `repaired` counts kept rows by repair; a
    row with two repairs is counted under both. Tokens are those of the examples, so of one epoch,
    and a group's `share` is its part of them.
    """
    by = [_entry(group) for group in stats]
    total = {key: sum(entry[key] for entry in by) for key in _SUMMED}
    for entry in by:
        entry["share"] = round(entry["tokens"] / total["tokens"], 6) if total["tokens"] else 0.0
    reasons = {name: _summed(entry[name] for entry in by) for name in ("dropped", "repaired")}
    return {**total, **reasons, "by": by}


_SUMMED = ("in", "kept", "validation", "repeats", "examples", "tokens", "supervised_tokens")


def _summed(counters: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counts in counters:
        total.update(counts)
    return dict(sorted(total.items()))


def _entry(stats: RowStats) -> dict[str, Any]:
    examples = stats.examples
    assert examples == stats.kept - stats.validation + stats.repeats, "rows were lost"
    return {
        "source": stats.source,
        "mode": stats.mode,
        "in": stats.kept + stats.dropped.total(),
        "kept": stats.kept,
        "dropped": dict(sorted(stats.dropped.items())),
        "repaired": dict(sorted(stats.repaired.items())),
        "validation": stats.validation,
        "repeats": stats.repeats,
        "examples": examples,
        "tokens": stats.tokens,
        "supervised_tokens": stats.supervised,
        "mean_tokens": round(stats.tokens / examples, 1) if examples else 0.0,
        "max_tokens": stats.longest,
    }
