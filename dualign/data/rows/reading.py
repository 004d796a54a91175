"""How a source's rows are read: under its own `columns`, or under the names of public sets; and which
of its columns aren't used.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import datasets
import yaml

from dualign.data.config import SourceConfig, Supervise
from dualign.data.rows.columns import check_columns, shape_for, unread_keys, unused_columns
from dualign.data.rows.known_columns import guessed_columns, known_columns, samples_of
from dualign.data.rows.shapes import PLACE

_LOOKED_AT = 100
_PLAIN = re.compile(r"[\w./-]+(?: [\w./-]+)*")
_CHANGES_MEANING = frozenset(
    {"score", "reward", "rating", "rank", "labels", "history", "context", "input", "choices"}
    | {"options", "thinking", "reasoning_content", "cot", "system_prompt", "system_message"}
    | {"objects", "bbox", "bboxes", "boxes"}
)
"""Columns whose names say that they change what is learned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceReading:
    """A source whose `columns` say how its rows are read. `known`: by the names of public sets."""

    source: SourceConfig
    unused: tuple[str, ...] = ()
    known: bool = False

    def record(self, total: int) -> dict[str, Any]:
        """Return what run.json keeps beside the source's `total` rows; nothing for a source whose
        columns are ours, all of them.
        """
        record: dict[str, Any] = {}
        if self.source.rows is not None and total < self.source.rows:
            record["asked"] = self.source.rows
        if self.source.columns:
            record["columns"] = dict(self.source.columns)
            record["known"] = self.known
        if self.unused:
            record["unused"] = list(self.unused)
        return record


def read_source(
    source: SourceConfig, table: datasets.Dataset, *, pairs: bool, supervise: Supervise
) -> SourceReading:
    """Return how the rows of a source are read. Columns without a value aren't among the unused.

    Raises:
        DataError: `columns` names what the file doesn't have.
    """
    columns, samples = source.columns, samples_of(table)
    if columns:
        check_columns(source, table)
    else:
        verbatim = (supervise == "all" or PLACE in samples) and not pairs
        columns = known_columns(samples, pairs=pairs, verbatim=verbatim)
    names = table.column_names
    shape = shape_for(columns, dict.fromkeys(names), pairs=pairs)
    unused = unused_columns(names, columns, shape) if shape else ()
    unread = unread_keys(islice(table, _LOOKED_AT), columns) if shape else ()
    filled = (name for name in unused if samples.get(name) not in (None, ""))
    return SourceReading(
        source=replace(source, columns=columns),
        unused=(*filled, *unread),
        known=bool(columns) and not source.columns,
    )


def columns_to_try(table: datasets.Dataset, *, pairs: bool) -> Mapping[str, Any]:
    """Return a mapping to try for a source of unknown shape; empty if a guess would have no ground."""
    return guessed_columns(samples_of(table), pairs=pairs)


def as_yaml(value: Any) -> str:
    """Return a mapping as YAML on one line; texts that YAML would take for something else are in
    double quotes.
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {as_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def _last_key(path: str) -> str:
    return path.rpartition("[].")[2].lower()


def reading_notes(sources: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what to say about the sources of run.json: a reading by known names, unused columns."""
    for source in sources:
        name = source["source"].rsplit("/", 1)[-1]
        if source.get("known"):
            yield (
                f"{name}: read by the names of its columns as {as_yaml(source['columns'])}; "
                "`columns` of the source says otherwise"
            )
        if "asked" in source:
            yield f"{name}: holds {source['rows']:,} rows; rows: {source['asked']:,} takes them all"
        unused = source.get("unused", ())
        telling = [column for column in unused if _last_key(column) in _CHANGES_MEANING]
        others = [column for column in unused if column not in telling]
        if telling:
            yield (
                f"{name}: {', '.join(telling)} would change what is learned, by the name, and isn't "
                "used"
            )
        if others:
            yield f"{name}: columns that aren't used: {', '.join(others)}"
