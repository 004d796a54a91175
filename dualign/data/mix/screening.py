"""Rows that are left out before anything is tokenized: problems of the evaluation, and duplicates.

    sampled rows -> a fingerprint of each (in worker processes, on disk)
                 -> contaminated, then duplicates, then near duplicates

The first of a kind stays, in the order of the sources and of their rows. Rows of different modes
aren't duplicates of each other. Inconsistent rows pass: tokenizing reports their faults.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import numpy as np

from dualign.data.config import DataConfig, DedupConfig, SourceConfig
from dualign.data.conversation import Conversation, Group, PreferencePair
from dualign.data.faults import RowError
from dualign.data.mix.decontamination import TaskIndex, index_tasks
from dualign.data.mix.dedup import (
    Signatures,
    digest,
    exact_duplicates,
    near_duplicates,
    signatures,
)
from dualign.data.rows.loading import SampledRows
from dualign.data.rows.sources import source_label, to_conversation, to_pair
from dualign.data.seeds import Indices
from dualign.data.uncached import map_uncached

_FEATURES = datasets.Features(
    {name: datasets.Value("string") for name in ("mode", "task", "problem", "start")}
    | {name: datasets.Value("binary") for name in ("digest", "signature")}
)
_SAMPLES_OF_EACH = 5
_SAMPLE_CHARACTERS = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class ScreenedRows:
    """The rows that stay, source by source; how many were removed, by (mode, source) and code; for
    each task its problems and the rows that hold one; and samples of the removed rows.
    """

    sampled: tuple[SampledRows, ...]
    removed: Mapping[Group, Counter[str]] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    samples: tuple[Mapping[str, Any], ...] = ()


def screen(sampled: Sequence[SampledRows], data: DataConfig, *, pairs: bool) -> ScreenedRows:
    """Return the rows that neither hold a problem of the evaluation nor repeat an earlier row."""
    if data.dedup is None and data.decontaminate is None:
        return ScreenedRows(sampled=tuple(sampled))
    config = data.decontaminate
    index = index_tasks(config.tasks, config.ngram) if config else None
    tables = [
        map_uncached(
            rows.table,
            _Fingerprinter(source=source, data=data, pairs=pairs, index=index),
            remove_columns=rows.table.column_names,
            features=_FEATURES,
            num_proc=data.num_proc if data.num_proc > 1 else None,
            desc=f"screening {source_label(source)}",
        )
        for rows, source in zip(sampled, data.sources, strict=True)
    ]
    table = datasets.concatenate_datasets(tables)
    mode, task = (np.asarray(table[name][:]) for name in ("mode", "task"))
    verdict = _Verdict(
        code=np.where(task == "", "", "contaminated").astype(object),
        same_as=np.full(len(table), -1),
    )
    if data.dedup is not None:
        _mark_duplicates(table, mode, data.dedup, verdict)
    places = _Places(sampled=sampled, labels=[source_label(source) for source in data.sources])
    return ScreenedRows(
        sampled=places.kept(verdict),
        removed=places.removed(verdict, mode),
        tasks=_rows_of_tasks(index, task) if index else {},
        samples=places.samples(verdict, table),
    )


@dataclass(frozen=True, kw_only=True)
class _Fingerprinter:
    """Rows -> their fingerprints. A callable for `datasets.Dataset.map`."""

    source: SourceConfig
    data: DataConfig
    pairs: bool
    index: TaskIndex | None

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        count = len(next(iter(batch.values())))
        rows = [
            self._row({key: values[row] for key, values in batch.items()}) for row in range(count)
        ]
        dedup = self.data.dedup
        if dedup is not None and dedup.method == "minhash":
            texts = [row["texts"] for row in rows]
            for row, signature in zip(rows, signatures(texts, dedup.ngram), strict=True):
                row["signature"] = signature
        return {name: [row[name] for row in rows] for name in _FEATURES}

    def _row(self, raw: dict[str, Any]) -> dict[str, Any]:
        entry: dict[str, Any] = dict.fromkeys(("mode", "task", "problem", "start"), "")
        entry |= {"digest": b"", "signature": b"", "texts": []}
        try:
            parsed = (
                to_pair(raw, source=self.source, index=0)
                if self.pairs
                else to_conversation(
                    raw, source=self.source, index=0, supervise=self.data.supervise
                )
            )
        except RowError:
            return entry
        texts = _texts(parsed)
        entry |= {"mode": parsed.mode, "digest": digest(parsed), "texts": texts}
        entry["start"] = " ".join(texts)[:_SAMPLE_CHARACTERS]
        if self.index and (problem := self.index.find(texts)):
            entry |= {"task": problem.task, "problem": problem.id}
        return entry


@dataclass(frozen=True, kw_only=True, slots=True)
class _Verdict:
    """For each row the code under which it is removed (empty: it stays), and the row that it repeats
    (-1: none). Both arrays are written while rows are compared.
    """

    code: Any
    same_as: Indices


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Rows of the joined table <-> rows of sources."""

    sampled: Sequence[SampledRows]
    labels: Sequence[str]

    @property
    def source_index(self) -> Indices:
        return np.repeat(np.arange(len(self.sampled)), [len(rows.rows) for rows in self.sampled])

    def place(self, row: int) -> tuple[str, int]:
        """Return (source, row in it)."""
        number = int(self.source_index[row])
        before = sum(len(rows.rows) for rows in self.sampled[:number])
        return self.labels[number], int(self.sampled[number].rows[row - before])

    def kept(self, verdict: _Verdict) -> tuple[SampledRows, ...]:
        kept, start = [], 0
        for rows in self.sampled:
            stay = np.flatnonzero(verdict.code[start : start + len(rows.rows)] == "")
            start += len(rows.rows)
            table = rows.table if len(stay) == len(rows.rows) else rows.table.select(stay)
            kept.append(replace(rows, table=table, rows=rows.rows[stay]))
        return tuple(kept)

    def removed(self, verdict: _Verdict, mode: Any) -> dict[Group, Counter[str]]:
        removed: dict[Group, Counter[str]] = {}
        source_index = self.source_index
        for row in np.flatnonzero(verdict.code != "").tolist():
            group = (str(mode[row]), self.labels[int(source_index[row])])
            removed.setdefault(group, Counter())[verdict.code[row]] += 1
        return removed

    def samples(self, verdict: _Verdict, table: datasets.Dataset) -> tuple[dict[str, Any], ...]:
        """Return the first few rows of each source and code, with what they repeat."""
        samples, count = [], Counter[tuple[int, str]]()
        source_index = self.source_index
        for row in np.flatnonzero(verdict.code != "").tolist():
            code = str(verdict.code[row])
            key = (int(source_index[row]), code)
            count[key] += 1
            if count[key] > _SAMPLES_OF_EACH:
                continue
            entry = table[row]
            if code == "contaminated":
                same_as: dict[str, Any] = {"task": entry["task"], "problem": entry["problem"]}
            else:
                source, number = self.place(int(verdict.same_as[row]))
                same_as = {"source": source, "row": number}
            source, number = self.place(row)
            samples.append({"source": source, "row": number, "code": code, "text": entry["start"]})
            samples[-1]["same_as"] = same_as
        return tuple(samples)


def _mark_duplicates(
    table: datasets.Dataset, mode: Any, dedup: DedupConfig, verdict: _Verdict
) -> None:
    """Write the codes of duplicates, and the rows that they repeat, into the verdict."""
    rows = np.flatnonzero((verdict.code == "") & (mode != ""))
    digests = table["digest"][:]
    same_as = exact_duplicates([digests[row] for row in rows.tolist()])
    _mark(verdict, "duplicate", rows, same_as)
    if dedup.method == "minhash":
        rows = rows[same_as < 0]

        def read(indices: Indices) -> Signatures:
            joined = b"".join(table.select(rows[indices])["signature"][:])
            return np.frombuffer(joined, dtype=np.uint32).reshape(len(indices), -1)

        same_as = near_duplicates(len(rows), read, mode[rows] == "think", dedup)
        _mark(verdict, "near_duplicate", rows, same_as)


def _mark(verdict: _Verdict, code: str, rows: Indices, same_as: Indices) -> None:
    repeats = same_as >= 0
    verdict.code[rows[repeats]] = code
    verdict.same_as[rows[repeats]] = rows[same_as[repeats]]


def _texts(parsed: Conversation | PreferencePair) -> list[str]:
    """Return all that is said and thought in a row."""
    messages = (
        parsed.messages
        if isinstance(parsed, Conversation)
        else (*parsed.prompt, *parsed.chosen, *parsed.rejected)
    )
    texts = [text for message in messages for text in (message.thinking, message.content) if text]
    return texts + [json.dumps(dict(call)) for message in messages for call in message.tool_calls]


def _rows_of_tasks(index: TaskIndex, task: Any) -> dict[str, dict[str, int]]:
    problems = Counter(problem.task for problem in index.problems)
    return {
        name: {"problems": count, "rows": int((task == name).sum())}
        for name, count in problems.items()
    }
