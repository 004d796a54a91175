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
from uuid import uuid4

import datasets
import pyarrow as pa
from datasets.arrow_writer import ArrowWriter

from dualign.data.processes import map_in_order
from dualign.data.workers import Share

_MOST_ROWS = 10_000
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


@dataclass(frozen=True, kw_only=True, slots=True)
class TableJob:
    """A table of `count` rows to be written: `make` returns those of consecutive indices."""

    count: int
    make: Callable[[range], pa.Table]
    features: datasets.Features
    title: str
    batch_rows: int = 1_000


def write_tables(
    jobs: Sequence[TableJob],
    *,
    processes: int,
    doing: str,
    share: Share | None = None,
    last: bool = False,
) -> list[datasets.Dataset]:
    """Return the tables. With a `share` only its shards are written, where they aren't there yet;
    `last`: a worker has nothing to do after them.

    Raises:
        PartDoneError: this is a worker, and it ends here.
    """
    folders = [_folder(f"{doing} {job.title}", share) for job in jobs]
    writer = _ShardWriter(jobs=jobs, folders=folders)
    parts = share.workers if share else processes
    shards = [
        (number, shard) for number, job in enumerate(jobs) for shard in _shards(job.count, parts)
    ]
    paths = [writer.path(*shard) for shard in shards]
    if share is None:
        todo = shards
    else:
        todo = [shard for shard in share.of(shards) if not writer.path(*shard).exists()]
    with datasets.utils.tqdm(total=sum(len(rows) for _, rows in todo), unit=" rows") as bar:
        results = map_in_order(writer, todo, processes=processes, title=doing)
        for (number, rows), _ in zip(todo, results, strict=True):
            bar.set_description(f"{doing} {jobs[number].title}", refresh=False)
            bar.update(len(rows))
    if share is not None and share.worker is not None:
        missing = share.missing(paths)
        if missing or last:
            share.end(doing, missing)
    return [
        joined([path for path, (of, _) in zip(paths, shards, strict=True) if of == number])
        if job.count
        else datasets.Dataset.from_dict({name: [] for name in job.features}, features=job.features)
        for number, job in enumerate(jobs)
    ]


def _folder(title: str, share: Share | None) -> Path:
    """Return the folder of a table's shards."""
    if share is None:
        return Path(tempfile.mkdtemp(dir=temporary_folder()))
    folder = share.table_folder(title)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def joined(paths: Sequence[Path]) -> datasets.Dataset:
    """Return Arrow files, one after the other, as one table."""
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in paths])


@cache
def temporary_folder() -> str:
    """Return a folder for this process's tables, deleted when the process ends."""
    folder = tempfile.mkdtemp(prefix="dualign-rows-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _shards(count: int, parts: int) -> list[range]:
    """Return the shards of a table; a progress bar moves with each."""
    size = -(-count // (parts * _SHARDS_PER_PROCESS))
    size = min(max(size, _LEAST_ROWS), _MOST_ROWS)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _ShardWriter:
    """A shard, as the number of a job and a range of its rows -> its file."""

    jobs: Sequence[TableJob]
    folders: Sequence[Path]

    def __call__(self, shard: tuple[int, range]) -> None:
        number, rows = shard
        job, path = self.jobs[number], self.path(number, rows)
        half = path.with_suffix(f".{uuid4().hex}")
        with ArrowWriter(path=str(half), features=job.features) as writer:
            for start in range(rows.start, rows.stop, job.batch_rows):
                writer.write_table(job.make(range(start, min(start + job.batch_rows, rows.stop))))
            writer.finalize()
        half.replace(path)

    def path(self, number: int, rows: range) -> Path:
        return self.folders[number] / f"{rows.start:012d}.arrow"
