"""A source -> its parts: local files, or the shards of a hub dataset. Each is read from any of its rows on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets

from dualign.data.config import SourceConfig
from dualign.data.rows.cutting import Cutter
from dualign.data.rows.json_rows import JsonRows
from dualign.data.rows.loading import open_source, reading
from dualign.data.rows.padding import Structs, struct_columns
from dualign.data.rows.source_files import local_files


@dataclass(frozen=True, kw_only=True, slots=True)
class RawRows:
    """Consecutive rows as columns; `structs` are the columns whose objects hold padding."""

    columns: Mapping[str, list[Any]]
    structs: Structs
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One file or shard; `names` are columns that the source is known to have."""

    source: SourceConfig
    name: str
    rows: datasets.IterableDataset | JsonRows
    names: tuple[str, ...]

    def batches(self, start: int, size: int) -> Iterator[RawRows]:
        """Yield the rows from row `start` on, `size` at a time.

        Raises:
            DataError: a row can't be read; names the source.
        """
        if isinstance(self.rows, JsonRows):
            batches = self._json(self.rows, start, size)
        else:
            batches = self._tables(self.rows, start, size)
        while True:
            with reading(self.source):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _json(self, rows: JsonRows, start: int, size: int) -> Iterator[RawRows]:
        iterator = islice(rows, start, None)
        while batch := list(islice(iterator, size)):
            names = dict.fromkeys([*self.names, *(name for row in batch for name in row)])
            columns = {name: [row.get(name) for row in batch] for name in names}
            yield RawRows(columns=columns, structs={}, count=len(batch))

    def _tables(self, rows: Any, start: int, size: int) -> Iterator[RawRows]:
        for table in rows.with_format("arrow").skip(start).iter(batch_size=size):
            features = rows.features or datasets.Features.from_arrow_schema(table.schema)
            stored = {
                name: replace(kind, decode=False) if isinstance(kind, datasets.Json) else kind
                for name, kind in features.items()
            }
            yield RawRows(
                columns={name: table.column(name).to_pylist() for name in table.column_names},
                structs=struct_columns(datasets.Features(stored)),
                count=table.num_rows,
            )


def parts_of(
    source: SourceConfig, names: Sequence[str], *, base: Path | None, cutter: Cutter | None
) -> list[Part]:
    """Return the parts of a source, in the order of its files or shards.

    Raises:
        DataError: the source can't be read.
    """
    with reading(source):
        stream = open_source(replace(source, streaming=True), base, cutter)
    if isinstance(stream, JsonRows):
        rows: list[datasets.IterableDataset | JsonRows] = [
            JsonRows((file,), stream.split) for file in stream.files
        ]
        titles = [file.name for file in stream.files]
    else:
        assert isinstance(stream, datasets.IterableDataset), "every source can be streamed"
        count = stream.num_shards
        rows = [stream.shard(num_shards=count, index=number) for number in range(count)]
        titles = [file.name for file in local_files(source.path, base)]
        if len(titles) != count:
            titles = [f"shard {number}" for number in range(count)]
    return [
        Part(source=source, name=title, rows=part, names=tuple(names))
        for title, part in zip(titles, rows, strict=True)
    ]
