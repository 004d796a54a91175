"""Batches of rows -> a table on disk, in shards that several processes write.

A shard is an Arrow file of consecutive rows. How many there are changes no row and no order.
`datasets` would find a result of `Dataset.map` by the function's name, not by its code or by what it
calls, and its processes wait for the slowest: each has one share of the rows.
"""

import atexit
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.arrow_writer import ArrowWriter

from dualign.data.processes import map_in_order

_MOST_ROWS = 20_000
_LEAST_ROWS = 16
_SHARDS_PER_PROCESS = 4
"""So that processes end at nearly the same time, though rows differ in their lengths."""
Batch = Mapping[str, list[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mapped:
    """A function of the rows of a table, by their indices."""

    rows: datasets.Dataset
    function: Callable[[Batch, Sequence[int]], pa.Table]

    def __call__(self, indices: range) -> pa.Table:
        return self.function(self.rows[indices.start : indices.stop], indices)


def write_shards(
    count: int,
    make: Callable[[range], pa.Table],
    *,
    features: datasets.Features,
    title: str,
    processes: int = 1,
    batch_rows: int = 1_000,
) -> datasets.Dataset:
    """Return the table of `make(indices)` for consecutive batches of `count` rows."""
    if not count:
        return datasets.Dataset.from_dict({name: [] for name in features}, features=features)
    folder = Path(tempfile.mkdtemp(dir=temporary_folder()))
    writer = _ShardWriter(make=make, features=features, folder=folder, batch_rows=batch_rows)
    shards = _shards(count, processes)
    with datasets.utils.tqdm(total=count, desc=title, unit=" rows") as bar:
        for rows in map_in_order(writer, shards, processes=processes, title=title):
            bar.update(rows)
    return joined([writer.path(shard) for shard in shards])


def joined(paths: Sequence[Path]) -> datasets.Dataset:
    """Return Arrow files, one after the other, as one table."""
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in paths])


@cache
def temporary_folder() -> str:
    """Return a folder for this process's tables, deleted when the process ends."""
    folder = tempfile.mkdtemp(prefix="dualign-rows-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _shards(count: int, processes: int) -> list[range]:
    if processes == 1:
        size = max(1, count)
    else:
        size = -(-count // (processes * _SHARDS_PER_PROCESS))
        size = min(max(size, _LEAST_ROWS), _MOST_ROWS)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _ShardWriter:
    """A range of rows -> its file; returns how many rows it has."""

    make: Callable[[range], pa.Table]
    features: datasets.Features
    folder: Path
    batch_rows: int

    def __call__(self, shard: range) -> int:
        with ArrowWriter(path=str(self.path(shard)), features=self.features) as writer:
            for start in range(shard.start, shard.stop, self.batch_rows):
                writer.write_table(
                    self.make(range(start, min(start + self.batch_rows, shard.stop)))
                )
            writer.finalize()
        return len(shard)

    def path(self, shard: range) -> Path:
        return self.folder / f"{shard.start:010d}.arrow"
