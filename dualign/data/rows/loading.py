"""Sources -> tables on disk, through `datasets`: local files, globs, folders, saved datasets, or a
hub id.

A table is memory-mapped Arrow: what a source takes in memory doesn't grow with its rows. A source
with `streaming` is read as a stream, and only the rows that its amount asks for reach the disk.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
from datasets.arrow_writer import ArrowWriter

from dualign.data.config import SourceConfig
from dualign.data.rows.file_formats import (
    csv_options,
    json_features,
    require_zstandard,
    unpack_files,
)
from dualign.data.rows.padding import Structs, struct_columns
from dualign.data.rows.source_files import (
    combined_sha256,
    data_format,
    fingerprint_files,
    is_saved_dataset,
    local_files,
)
from dualign.data.seeds import Indices, rng, rows_to_read
from dualign.data.uncached import temporary_folder
from dualign.errors import DataError

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
    def structs(self) -> Structs:
        """The columns whose objects may hold nulls that the table put there."""
        return struct_columns(self.table.features)


def load_source(source: SourceConfig, *, base: Path | None = None) -> datasets.Dataset:
    """Return all rows of a source as a table on disk; relative paths start at `base`."""
    rows = _open(source, base)
    if source.streaming:
        rows = _to_disk(rows, _features(rows))
    if not len(rows):
        raise DataError(f"source {source.path!r}, split {source.split!r}: holds no rows")
    return rows


def sample_rows(source: SourceConfig, *, seed: int, number: int, base: Path | None) -> SampledRows:
    """Return the rows of a source that its `weight` or `rows` asks for, in the source's order.

    They are drawn by a random generator of their own, made from the seed and the source's `number`
    in the recipe.
    """
    random = rng(seed, "weight", number)
    if not source.streaming or source.rows is None:
        table = load_source(source, base=base)
        rows = rows_to_read(len(table), source, random)
        digest = _digest(source, table, base)
        return SampledRows(table=table.select(rows), rows=rows, total=len(table), sha256=digest)
    stream = _open(source, base)
    if not local_files(source.path, base):
        return _first_shuffled(source, stream, seed)
    total = sum(1 for _ in stream)
    rows = rows_to_read(total, source, random)
    table = _to_disk(_at(stream, rows), _features(stream))
    digest = _digest(source, table, base)
    return SampledRows(table=table, rows=rows, total=total, sha256=digest)


def _first_shuffled(
    source: SourceConfig, stream: datasets.IterableDataset, seed: int
) -> SampledRows:
    """Return the first rows of a hub dataset after its files, and then rows in a buffer, were
    shuffled: only the files that are reached are downloaded.
    """
    assert source.rows is not None, "sample_rows asks for rows"
    features = _features(stream)
    shuffled = stream.shuffle(seed=seed, buffer_size=_SHUFFLE_ROWS).take(source.rows)
    table = _to_disk(shuffled, features)
    rows = rows_to_read(len(table), source, rng(seed, "stream"))
    return SampledRows(table=table, rows=rows, total=len(rows), sha256=_rows_sha256(table))


def _open(source: SourceConfig, base: Path | None) -> datasets.Dataset | datasets.IterableDataset:
    files = local_files(source.path, base)
    require_zstandard(source.path, files)
    try:
        return _local(source, files, base) if files else _hub(source)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, DataError):
            raise
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
    source: SourceConfig, files: list[Path], base: Path | None
) -> datasets.Dataset | datasets.IterableDataset:
    folder = (base or Path()) / Path(source.path).expanduser()
    if folder.is_dir() and is_saved_dataset(folder):
        saved = datasets.load_from_disk(str(folder))
        return saved.to_iterable_dataset() if source.streaming else saved
    kinds = sorted({data_format(file) for file in files})
    if len(kinds) > 1:
        raise DataError(
            f"source {source.path!r}: holds {' and '.join(kinds)} files. "
            "Give one source for each kind, for example with a glob such as folder/*.jsonl."
        )
    options: dict[str, Any] = {}
    if kinds[0] == "json":
        options = {"features": json_features(files)}
    elif kinds[0] == "csv":
        options = csv_options(files)
    return datasets.load_dataset(
        kinds[0],
        data_files={source.split.split("[")[0]: unpack_files(files, kinds[0])},
        split=source.split,
        streaming=source.streaming,
        **options,
    )


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


def _to_disk(stream: Iterable[dict[str, Any]], features: datasets.Features) -> datasets.Dataset:
    """Write the rows of a stream to Arrow files of a temporary folder, one shard at a time."""
    folder, rows, shards = temporary_folder(), iter(stream), []
    while batch := list(islice(rows, 1)):
        handle, path = tempfile.mkstemp(suffix=".arrow", dir=folder)
        os.close(handle)
        with ArrowWriter(path=path, features=features) as writer:
            for row in chain(batch, islice(rows, _SHARD_ROWS - 1)):
                writer.write(row)
            writer.finalize()
        shards.append(datasets.Dataset.from_file(path))
    if not shards:
        return datasets.Dataset.from_dict({name: [] for name in features}, features=features)
    return datasets.concatenate_datasets(shards)


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
