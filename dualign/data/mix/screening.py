"""Rows that are left out before anything is tokenised: problems of the evaluation, and duplicates.

    drawn rows -> a fingerprint of each (in worker processes, on disk)
               -> contaminated, then duplicates, then near duplicates

The first of a kind stays, in the order of the sources and of their rows. Rows of different modes
aren't duplicates of each other. A row that contradicts itself passes: tokenising says what is wrong.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import datasets
import numpy as np
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from dualign.data.caching import map_afresh
from dualign.data.config import DataConfig, DedupConfig, SourceConfig
from dualign.data.conversation import Conversation, Group, PreferencePair
from dualign.data.faults import RowError
from dualign.data.mix.decontamination import TaskIndex, index_tasks
from dualign.data.mix.near_duplicates import Signatures, band_hashes, first_alike, signatures
from dualign.data.mix.words import Hashes, shingles, word_hashes
from dualign.data.rows.loading import Drawn
from dualign.data.rows.sources import source_label, to_conversation, to_pair
from dualign.data.seeds import Indices

_FEATURES = datasets.Features(
    {name: datasets.Value("string") for name in ("mode", "task", "problem", "start")}
    | {name: datasets.Value("binary") for name in ("digest", "signature")}
)
_SHOWN_OF_EACH = 5
_SHOWN_CHARACTERS = 120
_BATCH = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Screened:
    """The rows that stay, source by source; how many went, by (mode, source) and code; for each task
    its problems and the rows that held one; and some of the rows that went.
    """

    drawn: tuple[Drawn, ...]
    removed: Mapping[Group, Counter[str]] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    samples: tuple[Mapping[str, Any], ...] = ()


def screen(
    drawn: Sequence[Drawn], data: DataConfig, *, pairs: bool, num_proc: int | None
) -> Screened:
    """The rows that neither hold a problem of the evaluation nor repeat an earlier row."""
    if data.dedup is None and data.decontaminate is None:
        return Screened(drawn=tuple(drawn))
    asked = data.decontaminate
    index = index_tasks(asked.tasks, asked.ngram) if asked else None
    tables = [
        _fingerprints(one, _Reader(source=source, data=data, pairs=pairs, index=index), num_proc)
        for one, source in zip(drawn, data.sources, strict=True)
    ]
    table = datasets.concatenate_datasets(tables)
    about = {name: np.asarray(table[name][:]) for name in ("mode", "task")}
    code, of = np.full(len(table), "", dtype=object), np.full(len(table), -1)
    code[about["task"] != ""] = "contaminated"
    if data.dedup is not None:
        _mark_duplicates(table, about["mode"], data.dedup, code, of)
    places = _Places(drawn=drawn, labels=[source_label(source) for source in data.sources])
    return Screened(
        drawn=places.kept(code),
        removed=places.counted(code, about["mode"]),
        tasks=_by_task(index, about["task"]) if index else {},
        samples=places.samples(code, of, table),
    )


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Rows -> what they are compared by. A callable for `datasets.Dataset.map`."""

    source: SourceConfig
    data: DataConfig
    pairs: bool
    index: TaskIndex | None

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        count = len(next(iter(batch.values())))
        made = [
            self._row({key: values[at] for key, values in batch.items()}) for at in range(count)
        ]
        dedup = self.data.dedup
        if dedup is not None and dedup.method == "minhash":
            sets = [_shingles(one["texts"], dedup.ngram) for one in made]
            for one, signature in zip(made, signatures(sets), strict=True):
                one["signature"] = signature
        return {name: [one[name] for one in made] for name in _FEATURES}

    def _row(self, raw: dict[str, Any]) -> dict[str, Any]:
        try:
            read = (
                to_pair(raw, source=self.source, index=0)
                if self.pairs
                else to_conversation(
                    raw, source=self.source, index=0, supervise=self.data.supervise
                )
            )
        except RowError:
            return dict.fromkeys(("mode", "task", "problem", "start"), "") | {
                "digest": b"",
                "signature": b"",
                "texts": [],
            }
        texts = _texts(read)
        hit = self.index.find(texts) if self.index else None
        return {
            "mode": read.mode,
            "task": hit.task if hit else "",
            "problem": hit.problem if hit else "",
            "start": " ".join(texts)[:_SHOWN_CHARACTERS],
            "digest": _digest(read),
            "signature": b"",
            "texts": texts,
        }


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Places in the joined table <-> rows of sources."""

    drawn: Sequence[Drawn]
    labels: Sequence[str]

    @property
    def owner(self) -> Indices:
        return np.repeat(np.arange(len(self.drawn)), [len(one.rows) for one in self.drawn])

    def where(self, place: int) -> tuple[str, int]:
        """(source, row in it)."""
        number = int(self.owner[place])
        before = sum(len(one.rows) for one in self.drawn[:number])
        return self.labels[number], int(self.drawn[number].rows[place - before])

    def kept(self, code: Any) -> tuple[Drawn, ...]:
        made, start = [], 0
        for one in self.drawn:
            stay = np.flatnonzero(code[start : start + len(one.rows)] == "")
            start += len(one.rows)
            table = one.table if len(stay) == len(one.rows) else one.table.select(stay)
            made.append(replace(one, table=table, rows=one.rows[stay]))
        return tuple(made)

    def counted(self, code: Any, mode: Any) -> dict[Group, Counter[str]]:
        made: dict[Group, Counter[str]] = {}
        owner = self.owner
        for place in np.flatnonzero(code != "").tolist():
            group = (str(mode[place]), self.labels[int(owner[place])])
            made.setdefault(group, Counter())[code[place]] += 1
        return made

    def samples(
        self, code: Any, of: Indices, table: datasets.Dataset
    ) -> tuple[dict[str, Any], ...]:
        """The first few rows of each source and code, with what they repeat."""
        made, shown = [], Counter[tuple[int, str]]()
        owner = self.owner
        for place in np.flatnonzero(code != "").tolist():
            key = (int(owner[place]), str(code[place]))
            shown[key] += 1
            if shown[key] > _SHOWN_OF_EACH:
                continue
            source, row = self.where(place)
            said = table[place]
            names = ("task", "problem") if code[place] == "contaminated" else ("source", "row")
            same = (said["task"], said["problem"])
            same = same if code[place] == "contaminated" else self.where(int(of[place]))
            made.append(
                {"source": source, "row": row, "code": str(code[place]), "text": said["start"]}
                | {"same_as": dict(zip(names, same, strict=True))}
            )
        return tuple(made)


def _fingerprints(one: Drawn, reader: _Reader, num_proc: int | None) -> datasets.Dataset:
    return map_afresh(
        one.table,
        reader,
        remove_columns=one.table.column_names,
        features=_FEATURES,
        num_proc=num_proc if num_proc and num_proc > 1 else None,
        desc=f"screening {source_label(reader.source)}",
    )


def _mark_duplicates(
    table: datasets.Dataset, mode: Any, dedup: DedupConfig, code: Any, of: Indices
) -> None:
    """Write codes and the places of the rows that stay into `code` and `of`."""
    left = np.flatnonzero((code == "") & (mode != ""))
    digests = np.frombuffer(b"".join(table["digest"][:]), dtype="V16")
    # Rows that contradict themselves have no digest, so these are in the order of those that have.
    digests = digests[np.searchsorted(np.flatnonzero(mode != ""), left)]
    _, first, same = np.unique(digests, return_index=True, return_inverse=True)
    repeats = first[same] != np.arange(len(left))
    code[left[repeats]], of[left[repeats]] = "duplicate", left[first[same]][repeats]
    if dedup.method == "minhash":
        left = left[~repeats]
        read = partial(_signatures, table)
        bands = [
            band_hashes(read(left[start : start + _BATCH]), dedup.threshold)
            for start in range(0, len(left), _BATCH)
        ]
        if not bands:
            return
        hashes = np.concatenate(bands)
        hashes[mode[left] == "think"] += np.uint64(1)  # modes are compared apart
        alike = first_alike(hashes, lambda places: read(left[places]), threshold=dedup.threshold)
        near = np.flatnonzero(alike >= 0)
        code[left[near]], of[left[near]] = "near_duplicate", left[alike[near]]


def _signatures(table: datasets.Dataset, places: Indices) -> Signatures:
    joined = b"".join(table.select(places)["signature"][:])
    return np.frombuffer(joined, dtype=np.uint32).reshape(len(places), -1)


def _texts(read: Conversation | PreferencePair) -> list[str]:
    """What was said and thought in a row."""
    messages = (
        read.messages
        if isinstance(read, Conversation)
        else (*read.prompt, *read.chosen, *read.rejected)
    )
    texts = [text for one in messages for text in (one.thinking, one.content) if text]
    return texts + [json.dumps(dict(call)) for one in messages for call in one.tool_calls]


def _digest(read: Conversation | PreferencePair) -> bytes:
    """What two rows must share to be the same: everything but spaces, and where they come from."""
    parts = (
        (read.messages,)
        if isinstance(read, Conversation)
        else (read.prompt, read.chosen, read.rejected)
    )
    said = [
        [(one.role, one.thinking, " ".join(one.content.split()), one.tool_calls) for one in part]
        for part in parts
    ]
    whole = [read.mode, said, list(read.tools), dict(read.template_kwargs)]
    return xxh3_128_digest(json.dumps(whole, sort_keys=True, default=str).encode())


def _shingles(texts: list[str], ngram: int) -> Hashes:
    """The n-grams of a row; of one without words, such as emojis, the text itself."""
    said = "\n".join(texts)
    hashes = word_hashes(said)
    return (
        shingles(hashes, ngram)
        if len(hashes)
        else np.array([xxh3_64_intdigest(said.encode())], "uint64")
    )


def _by_task(index: TaskIndex, task: Any) -> dict[str, dict[str, int]]:
    problems = Counter(hit.task for hit in index.problems)
    return {
        name: {"problems": count, "rows": int((task == name).sum())}
        for name, count in problems.items()
    }
