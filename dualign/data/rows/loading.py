"""Sources -> tables on disk, through `datasets`: local files, globs, folders, saved datasets, or a
hub id.

A table is memory-mapped Arrow: what a source takes in memory doesn't grow with its rows. A source
with `streaming` is read as a stream, and only the rows that its amount asks for reach the disk.
"""

import json
import logging
import lzma
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter

from dualign.data.config import SourceConfig
from dualign.data.rows.cutting import Cutter
from dualign.data.rows.documents import require_document_readers
from dualign.data.rows.file_formats import csv_options, require_zstandard, unpack_files
from dualign.data.rows.file_signs import check_sign, is_empty
from dualign.data.rows.json_columns import write_rows
from dualign.data.rows.json_rows import JsonRows
from dualign.data.rows.padding import Structs, struct_columns
from dualign.data.rows.source_files import (
    combined_sha256,
    data_format,
    fingerprint_files,
    is_saved_dataset,
    local_files,
    unread_documents,
)
from dualign.data.rows.text_files import text_stream
from dualign.data.seeds import Indices, rng, rows_to_read
from dualign.data.shards import temporary_folder
from dualign.errors import DataError

logger = logging.getLogger(__name__)

Stream: TypeAlias = datasets.IterableDataset | JsonRows
_UNREADABLE = (OSError, ValueError, LookupError, RuntimeError, EOFError, zlib.error, lzma.LZMAError)
_SHARD_ROWS = 20_000
_SHUFFLE_ROWS = 2_000


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledRows:
    """The rows of a source that its amount asks for. `rows` are their indices in the source,
    `total` is how many rows were read, `sha256` is over the source's bytes or, of a hub dataset,
    its rows.

    `parsed`: the table has the column `parsed` (rows/parser.py) instead of the source's columns.
    """

    table: datasets.Dataset
    rows: Indices
    total: int
    sha256: str
    parsed: bool = False

    @property
    def stored(self) -> datasets.Dataset:
        """The table with JSON as text: `datasets` rounds the numbers in it."""
        table = self.table
        for name, kind in table.features.items():
            if isinstance(kind, datasets.Json):
                table = table.cast_column(name, datasets.Json(decode=False))
        return table

    @property
    def structs(self) -> Structs:
        """The columns of `stored` that hold JSON, or objects with nulls that the table put there."""
        return struct_columns(self.stored.features)


def load_source(
    source: SourceConfig,
    *,
    base: Path | None = None,
    cutter: Cutter | None = None,
    processes: int = 1,
) -> datasets.Dataset:
    """Return all rows of a source as a table on disk; relative paths start at `base`.

    `cutter` cuts documents into rows; without one a row is a document. So many `processes` read JSON.
    """
    with reading(source):
        rows = open_source(source, base, cutter, processes)
        table = rows if isinstance(rows, datasets.Dataset) else _to_disk(rows, rows)
    if not len(table):
        raise DataError(f"source {source.path!r}, split {source.split!r}: holds no rows")
    return table


def sample_rows(
    source: SourceConfig,
    *,
    seed: int,
    number: int,
    base: Path | None,
    cutter: Cutter | None = None,
    processes: int = 1,
    first: int | None = None,
) -> SampledRows:
    """Return the rows of a source that its `weight` or `rows` asks for, in the source's order; those
    of documents as `cutter` cuts them. So many `processes` read JSON. `first`: nothing but so many,
    its first ones, are read.

    They are drawn by a random generator of their own, made from the seed and the source's `number`
    in the recipe.
    """
    if first is not None:
        return first_rows(source, first, base=base, cutter=cutter)
    random = rng(seed, "weight", number)
    with reading(source):
        streams = source.streaming and source.rows is not None
        stream = open_source(source, base, cutter) if streams else None
        if stream is not None and not isinstance(stream, datasets.Dataset):
            return _sample_stream(source, stream, random, seed, base)
    table = load_source(source, base=base, cutter=cutter, processes=processes)
    rows = rows_to_read(len(table), source, random)
    digest = _digest(source, table, base)
    return SampledRows(table=table.select(rows), rows=rows, total=len(table), sha256=digest)


def first_rows(
    source: SourceConfig, count: int, *, base: Path | None, cutter: Cutter | None
) -> SampledRows:
    """Return the first rows of a source, of which no more are read."""
    with reading(source):
        stream = open_source(replace(source, streaming=True), base, cutter)
        assert not isinstance(stream, datasets.Dataset), "every source can be streamed"
        few = replace(stream, most=count) if isinstance(stream, JsonRows) else stream.take(count)
        table = _to_disk(few, few)
    if not len(table):
        raise DataError(f"source {source.path!r}, split {source.split!r}: holds no rows")
    rows = np.arange(len(table), dtype=np.int32)
    return SampledRows(table=table, rows=rows, total=len(rows), sha256=_rows_sha256(table))


def _sample_stream(
    source: SourceConfig, stream: Stream, random: np.random.Generator, seed: int, base: Path | None
) -> SampledRows:
    if isinstance(stream, datasets.IterableDataset) and not local_files(source.path, base):
        return _first_shuffled(source, stream, seed)
    total = sum(1 for _ in stream)
    if not total:
        raise DataError(f"source {source.path!r}, split {source.split!r}: holds no rows")
    rows = rows_to_read(total, source, random)
    table = _to_disk(_at(stream, rows), stream)
    digest = _digest(source, table, base)
    return SampledRows(table=table, rows=rows, total=total, sha256=digest)


def _first_shuffled(
    source: SourceConfig, stream: datasets.IterableDataset, seed: int
) -> SampledRows:
    """Return the first rows of a hub dataset after its files, and then rows in a buffer, were
    shuffled: only the files that are reached are downloaded.
    """
    assert source.rows is not None, "sample_rows asks for rows"
    shuffled = stream.shuffle(seed=seed, buffer_size=_SHUFFLE_ROWS).take(source.rows)
    table = _to_disk(shuffled, stream)
    rows = rows_to_read(len(table), source, rng(seed, "stream"))
    return SampledRows(table=table, rows=rows, total=len(rows), sha256=_rows_sha256(table))


def open_source(
    source: SourceConfig, base: Path | None, cutter: Cutter | None, processes: int = 1
) -> datasets.Dataset | Stream:
    """Return the rows of a source as they are read: a stream, or a table of what isn't streamed."""
    files = local_files(source.path, base)
    require_zstandard(source.path, files)
    if unread := unread_documents(source.path, files, base):
        logger.warning(
            "source %s: documents of the folder that aren't read: %s", source.path, unread
        )
    return _undecoded(_local(source, files, base, cutter, processes) if files else _hub(source))


@contextmanager
def reading(source: SourceConfig) -> Iterator[None]:
    """Turn what libraries raise while they read a source into a DataError that names it."""
    try:
        yield
    except DataError as error:
        if str(error).startswith("source "):
            raise
        raise DataError(f"source {source.path!r}: {error}") from error
    except (*_UNREADABLE, datasets.exceptions.DatasetsError) as error:
        cause = str(error.__cause__ or error)
        if "Couldn't cast" in cause:
            cause = (
                f"its files have different columns ({' '.join(cause.split())[:300]} ...). "
                "Give the files of each kind a source of their own."
            )
        raise DataError(
            f"source {source.path!r}, split {source.split!r}: can't be read: {cause}"
        ) from error


def _local(
    source: SourceConfig,
    files: list[Path],
    base: Path | None,
    cutter: Cutter | None,
    processes: int,
) -> datasets.Dataset | Stream:
    folder = (base or Path()) / Path(source.path).expanduser()
    if folder.is_dir() and is_saved_dataset(folder):
        saved = datasets.load_from_disk(str(folder))
        return saved.to_iterable_dataset() if source.streaming else saved
    kinds = sorted({data_format(file) for file in files})
    if len(kinds) > 1:
        raise DataError(
            f"holds {' and '.join(kinds)} files. "
            "Give one source for each kind, for example with a glob such as folder/*.jsonl."
        )
    files = _with_rows(files)
    for file in files:
        check_sign(file, kinds[0])
    split = source.split.split("[")[0]
    if kinds[0] == "json":
        rows = JsonRows(tuple(files), split)
        return rows if source.streaming else _part(rows.table(processes), split, source.split)
    if kinds[0] == "text":
        require_document_readers(files)
        texts = text_stream(files, cutter)
        return texts if source.streaming else _part(_to_disk(texts, texts), split, source.split)
    return datasets.load_dataset(
        kinds[0],
        data_files={split: unpack_files(files, kinds[0])},
        split=source.split,
        streaming=source.streaming,
        **(csv_options(files) if kinds[0] == "csv" else {}),
    )


def _undecoded(rows: datasets.Dataset | Stream) -> datasets.Dataset | Stream:
    """Return the rows with images, sounds and videos as bytes: nobody looks at them, and they would
    need packages.
    """
    if isinstance(rows, JsonRows) or not rows.features:
        return rows
    for name, kind in rows.features.items():
        plain = _without_decoding(kind)
        if plain != kind:
            rows = rows.cast_column(name, plain)
    return rows


def _without_decoding(kind: Any) -> Any:
    if isinstance(kind, datasets.Image | datasets.Audio | datasets.Video):
        return replace(kind, decode=False)
    if isinstance(kind, datasets.List):
        return datasets.List(_without_decoding(kind.feature))
    if isinstance(kind, Mapping):
        return {name: _without_decoding(item) for name, item in kind.items()}
    return kind


def _with_rows(files: list[Path]) -> list[Path]:
    """Return the files that aren't empty."""
    filled = [file for file in files if not is_empty(file)]
    if not filled:
        raise DataError(
            f"{files[0]}: holds no rows: it is empty ({files[0].stat().st_size} bytes)."
        )
    return filled


def _part(table: datasets.Dataset, name: str, split: str) -> datasets.Dataset:
    """Return the part of a table that a split such as `train[:100]` names."""
    if split == name:
        return table
    parts = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(table)})
    return table.select([row for part in parts for row in range(part.from_, part.to)])


def _hub(source: SourceConfig) -> datasets.Dataset | datasets.IterableDataset:
    return datasets.load_dataset(
        source.path,
        source.name,
        split=source.split,
        revision=source.revision,
        streaming=source.streaming,
    )


def _features(stream: datasets.IterableDataset) -> datasets.Features:
    """Return the columns of a stream, inferred from its first rows if its files don't declare them."""
    if stream.features is not None:
        return stream.features
    return datasets.Dataset.from_list(list(stream.take(1000))).features


def _at(stream: Iterable[dict[str, Any]], rows: Indices) -> Iterator[dict[str, Any]]:
    """Yield the items of a stream at ascending indices."""
    indices = iter(rows.tolist())
    index = next(indices, None)
    for number, row in enumerate(stream):
        if number == index:
            yield row
            index = next(indices, None)
        if index is None:
            return


def _to_disk(rows: Iterable[dict[str, Any]], stream: Stream) -> datasets.Dataset:
    """Write rows of a stream to Arrow files of a temporary folder, one shard at a time."""
    features = stream.features if isinstance(stream, JsonRows) else _features(stream)
    write = write_rows if isinstance(stream, JsonRows) else _write_rows
    folder, iterator, shards = temporary_folder(), iter(rows), []
    while batch := list(islice(iterator, 1)):
        handle, path = tempfile.mkstemp(suffix=".arrow", dir=folder)
        os.close(handle)
        write(chain(batch, islice(iterator, _SHARD_ROWS - 1)), features, Path(path))
        shards.append(datasets.Dataset.from_file(path))
    if not shards:
        return datasets.Dataset.from_dict({name: [] for name in features}, features=features)
    return datasets.concatenate_datasets(shards)


def _write_rows(rows: Iterable[Mapping[str, Any]], features: datasets.Features, path: Path) -> None:
    with ArrowWriter(path=str(path), features=features) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()


def _digest(source: SourceConfig, table: datasets.Dataset, base: Path | None) -> str:
    if local_files(source.path, base):
        return combined_sha256(fingerprint_files(source.path, base))
    if source.streaming:
        return _rows_sha256(table)
    return sha256(table._fingerprint.encode()).hexdigest()


def _rows_sha256(table: datasets.Dataset) -> str:
    digest = sha256()
    for row in table:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()
