"""Rows that are left out before anything is tokenized: problems of the evaluation, and duplicates.

    sampled rows -> each parsed, with a fingerprint (in worker processes, on disk)
                 -> contaminated, then duplicates, then near duplicates

The first of a kind stays, in the order of the sources and of their rows. Rows of different modes
aren't duplicates of each other. Inconsistent rows pass: tokenizing reports their faults. It reads
the parsed rows, so no row is parsed twice.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from dualign.data.config import DedupConfig
from dualign.data.conversation import Conversation, Group, RowType
from dualign.data.faults import RowError
from dualign.data.mix.decontamination import TaskIndex, index_tasks
from dualign.data.mix.dedup import (
    Signatures,
    digest,
    exact_duplicates,
    near_duplicates,
    signatures,
    worker_processes,
)
from dualign.data.request import DataRequest
from dualign.data.rows.loading import SampledRows
from dualign.data.rows.parser import Parsed, RowParser, dump_row, parts_of
from dualign.data.rows.shapes import Row
from dualign.data.rows.sources import source_label
from dualign.data.rows.text_rules import text_rules
from dualign.data.seeds import Indices
from dualign.data.shards import Mapped, TableJob, write_tables

_FEATURES = datasets.Features(
    {name: datasets.Value("string") for name in ("mode", "task", "problem", "start")}
    | {name: datasets.Value("binary") for name in ("digest", "signature", "parsed")}
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


def screen(
    sampled: Sequence[SampledRows], request: DataRequest, *, row_type: RowType
) -> ScreenedRows:
    """Return the rows that neither hold a problem of the evaluation nor repeat an earlier row."""
    data = request.data
    if data.dedup is None and data.decontaminate is None:
        return ScreenedRows(sampled=tuple(sampled))
    config = data.decontaminate
    index = index_tasks(config.tasks, config.ngram) if config else None
    parser = RowParser(
        source=data.sources[0],
        supervise=data.supervise,
        row_type=row_type,
        rules=text_rules(request.tokenizer, request.template),
    )
    jobs = [
        TableJob(
            count=len(rows.table),
            make=Mapped(
                rows=rows.stored,
                function=_Fingerprinter(
                    parser=replace(parser, source=source, structs=rows.structs),
                    rows=rows.rows,
                    dedup=data.dedup,
                    index=index,
                ),
            ),
            features=_FEATURES,
            title=source_label(source),
        )
        for rows, source in zip(sampled, data.sources, strict=True)
    ]
    processes = worker_processes(data.dedup, data.num_proc)
    tables = write_tables(jobs, processes=processes, doing="screening", share=request.share)
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
        sampled=places.kept(verdict, tables),
        removed=places.removed(verdict, mode),
        tasks=_rows_of_tasks(index, task) if index else {},
        samples=places.samples(verdict, table),
    )


@dataclass(frozen=True, kw_only=True)
class _Fingerprinter:
    """Raw rows -> parsed rows with their fingerprints. A callable for `Mapped`.

    `rows` are the indices of the rows in their source.
    """

    parser: RowParser
    rows: Indices
    dedup: DedupConfig | None
    index: TaskIndex | None

    def __call__(self, batch: Mapping[str, list[Any]], indices: Sequence[int]) -> pa.Table:
        rows = [
            self._row({key: values[number] for key, values in batch.items()}, row)
            for number, row in enumerate(self.rows[indices].tolist())
        ]
        if self.dedup is not None and self.dedup.method == "minhash":
            texts = [row["texts"] for row in rows]
            for row, signature in zip(rows, signatures(texts, self.dedup.ngram), strict=True):
                row["signature"] = signature
        columns = {name: [row[name] for row in rows] for name in _FEATURES}
        return pa.table(columns, schema=_FEATURES.arrow_schema)

    def _row(self, raw: Row, row: int) -> dict[str, Any]:
        entry: dict[str, Any] = dict.fromkeys(("mode", "task", "problem", "start"), "")
        entry |= {"digest": b"", "signature": b"", "texts": []}
        parsed = _parse(self.parser, raw, row)
        entry["parsed"] = dump_row(parsed)
        if isinstance(parsed, RowError) or "trim_tokens" in parsed.repairs:
            # Compared as it is written: control tokens, which are refused or trimmed, don't keep a
            # row from being a duplicate.
            parsed = _parse(self.parser.without_rules(), raw, row)
        if isinstance(parsed, RowError):
            return entry
        texts = texts_of(parsed)
        mode = parsed.counted_mode if isinstance(parsed, Conversation) else parsed.mode
        entry |= {"mode": mode, "digest": digest(parsed), "texts": texts}
        entry["start"] = " ".join(texts)[:_SAMPLE_CHARACTERS]
        if self.index and (problem := self.index.find(texts)):
            entry |= {"task": problem.task, "problem": problem.id}
        return entry


def _parse(parser: RowParser, raw: Row, row: int) -> Parsed | RowError:
    try:
        return parser(raw, row)
    except RowError as error:
        return error


@dataclass(frozen=True, kw_only=True, slots=True)
class _Verdict:
    """For each row the code under which it is removed (empty: it stays), and the row that it
    repeats (-1: none). Both arrays are written while rows are compared.
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

    def kept(
        self, verdict: _Verdict, tables: Sequence[datasets.Dataset]
    ) -> tuple[SampledRows, ...]:
        """Return the rows that stay, parsed; `tables` are those of the fingerprints."""
        kept, start = [], 0
        for rows, table in zip(self.sampled, tables, strict=True):
            stay = np.flatnonzero(verdict.code[start : start + len(rows.rows)] == "")
            start += len(rows.rows)
            parsed = table.select_columns(["parsed"])
            parsed = parsed if len(stay) == len(rows.rows) else parsed.select(stay)
            kept.append(replace(rows, table=parsed, rows=rows.rows[stay], parsed=True))
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


def texts_of(parsed: Parsed) -> list[str]:
    """Return all that is said and thought in a row."""
    messages = [message for part in parts_of(parsed) for message in part]
    texts = [text for message in messages for text in (message.thinking, message.content) if text]
    return texts + [
        json.dumps(call, default=str) for message in messages for call in message.functions
    ]


def _rows_of_tasks(index: TaskIndex, task: Any) -> dict[str, dict[str, int]]:
    problems = Counter(problem.task for problem in index.problems)
    return {
        name: {"problems": count, "rows": int((task == name).sum())}
        for name, count in problems.items()
    }
