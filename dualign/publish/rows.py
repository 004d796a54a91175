"""The rows that a stage of traces or pairs wrote, as a dataset of the Hub: Parquet by mode.

traces.jsonl -> data/think/train-00000-of-00001.parquet      one schema for all files
                data/no_think/train-00000-of-00001.parquet
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dualign.errors import PublishError
from dualign.publish.base import Base, find_bases, names_of
from dualign.publish.hub.metadata import HubClient
from dualign.publish.license import License
from dualign.publish.lineage import Lineage, read_rows_lineage
from dualign.publish.redaction import redact, replacements
from dualign.publish.release import PublishRequest, license_of_request, with_card
from dualign.publish.sources import DataSource, data_sources, licenses, writer_licenses

_FILES = {"traces": "traces.jsonl", "pairs": "pairs.jsonl"}
_FREE = ("tools", "chat_template_kwargs")
"""Columns whose keys differ from row to row: JSON text if one schema doesn't hold them"""
_ROWS_A_GROUP = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class RowsRelease:
    """All facts about a dataset, before a file is staged."""

    request: PublishRequest
    lineage: Lineage
    bases: tuple[Base, ...]
    sources: tuple[DataSource, ...]
    license: License
    names: Mapping[str, str]
    """path on this machine -> its public name"""
    rows: tuple[Mapping[str, Any], ...]
    """as they go: without this machine's paths and servers"""
    file: str

    @property
    def places(self) -> list[str]:
        """Folders of this machine that no file may name."""
        return [str(self.lineage.output)]

    @property
    def modes(self) -> dict[str, int]:
        """Mode -> rows, the more frequent first."""
        return dict(Counter(str(row.get("mode")) for row in self.rows).most_common())

    @property
    def writers(self) -> list[str]:
        """Endpoints that wrote rows, by the names that they gave themselves."""
        asked: Mapping[str, Any] = (self.lineage.run.record.get("metrics") or {}).get(
            "endpoints"
        ) or {}
        return [str(entry.get("name") or name) for name, entry in asked.items()]


def examine_rows(request: PublishRequest, hub: HubClient) -> RowsRelease:
    """Read what made the rows, and compute their license.

    Raises:
        PublishError: the stage wrote none, or a row isn't JSON.
    """
    lineage = read_rows_lineage(request.run_dir)
    request = with_card(request, request.run_dir)
    bases = find_bases(lineage.roots(), request.bases, hub) if lineage.roots() else ()
    names = replacements(lineage, names_of(bases))
    sources = tuple(data_sources(lineage))
    file = request.run_dir / _FILES[lineage.run.kind]
    rows = tuple(_public(row, names) for row in _read(file))
    release = RowsRelease(
        request=request,
        lineage=lineage,
        bases=bases,
        sources=sources,
        license=License(id=None, of={}, why=""),
        names=names,
        rows=rows,
        file=file.name,
    )
    of = licenses(bases, sources, hub, writer_licenses(lineage, hub))
    # An endpoint's model has the license that its user says.
    of |= {name: of.get(name) for name in release.writers}
    return replace(release, license=license_of_request(request, of))


def _read(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise PublishError(f"{file}: isn't there; run the stage again")
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise PublishError(
                f"{file}:{number}: not JSON ({error}); run the stage again"
            ) from None
    return rows


def _public(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return a row whose provenance names no path and no server of this machine."""
    provenance = row.get("provenance")
    if not isinstance(provenance, Mapping):
        return dict(row)
    kept = {key: value for key, value in provenance.items() if key != "endpoint"}
    return {**row, "provenance": redact(kept, names)}


def write_parquet(rows: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, str]:
    """Write the rows of each mode; return mode -> its file. All files have one schema."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = _table(rows)
    column = pa.array([str(row.get("mode")) for row in rows])
    files = {}
    for mode in dict.fromkeys(column.to_pylist()):
        name = f"data/{mode}/train-00000-of-00001.parquet"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        part = table.filter(pc.equal(column, mode))
        pq.write_table(part, folder / name, row_group_size=_ROWS_A_GROUP, write_page_index=True)
        files[mode] = name
    return files


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return the rows as typed columns; what has no one type is JSON text."""
    import pyarrow as pa

    plain = [_without_empty(row) for row in rows]
    for convert in (_same, _free_as_text, _calls_as_text):
        plain = [convert(row) for row in plain]
        try:
            return pa.Table.from_pylist(plain, schema=_schema(plain))
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            continue
    raise PublishError("the rows' columns hold values of several types: they can't be Parquet")


def _schema(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return the type of each column over all rows, in the order in which columns appear."""
    import pyarrow as pa

    columns = dict.fromkeys(name for row in rows for name in row)
    return pa.schema([(name, pa.array([row.get(name) for row in rows]).type) for name in columns])


def _without_empty(value: Any) -> Any:
    """Return a value whose empty objects are null: Parquet has no object without keys."""
    if isinstance(value, Mapping):
        return {key: _without_empty(item) for key, item in value.items()} or None
    return [_without_empty(item) for item in value] if isinstance(value, list) else value


def _same(row: dict[str, Any]) -> dict[str, Any]:
    return row


def _free_as_text(row: dict[str, Any]) -> dict[str, Any]:
    return {key: _text(value) if key in _FREE else value for key, value in row.items()}


def _calls_as_text(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose messages have calls and contents of several forms as JSON text."""

    def message(turn: Any) -> Any:
        if not isinstance(turn, Mapping):
            return turn
        forms = {key: value for key, value in turn.items() if isinstance(value, list | Mapping)}
        return {**turn, **{key: _text(value) for key, value in forms.items()}}

    turns = {
        key: [message(turn) for turn in value]
        for key, value in row.items()
        if isinstance(value, list)
    }
    return {**row, **turns}


def _text(value: Any) -> str | None:
    return (
        value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )
