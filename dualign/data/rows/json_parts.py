"""JSON files -> Arrow files, in parts that several processes read.

A part is a file, or the lines that begin in some bytes of a large one. Most files have the same columns
from their first rows to their last, so each part is written at once with the columns of the first rows.
Only where a later row has other ones are the parts read a second time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from datasets.arrow_writer import ArrowWriter

from dualign.data.processes import map_in_order
from dualign.data.rows.file_signs import encoding, packing
from dualign.data.rows.json_columns import (
    Kinds,
    batches_of,
    features_of,
    joined_kinds,
    kinds_of,
    to_arrow,
)
from dualign.data.rows.json_forms import NotRowsError, rows_of_file, rows_of_lines
from dualign.errors import DataError

_FIRST_ROWS = 1_000
_LEAST_BYTES, _MOST_BYTES = 1 << 20, 32 << 20
_PARTS_PER_PROCESS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """A JSON file; or the lines of it that begin in the bytes of `span`."""

    file: Path
    split: str
    span: range | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows; raises as `rows_of_file`, and NotRowsError for lines."""
        if self.span is None:
            return rows_of_file(self.file, self.split)
        return rows_of_lines(_lines(self.file, self.span))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Written:
    """What a part holds. `rows` is None where its lines aren't rows; `fits`: the file has all rows."""

    rows: int | None
    kinds: Kinds
    fits: bool


def write_parts(files: Sequence[Path], split: str, folder: Path, *, processes: int) -> None:
    """Write the rows of JSON files to Arrow files in a folder, in the order of their names.

    Raises:
        DataError: as `rows_of_file`, or no file holds a row.
    """
    known = kinds_of(islice(rows_of_file(files[0], split), _FIRST_ROWS))
    parts = _parts(files, split, processes)
    written = _write(parts, folder, known, processes)
    if whole := _of_other_forms(parts, written):
        for path in folder.iterdir():
            path.unlink()
        parts = _parts(files, split, processes, whole=whole)
        written = _write(parts, folder, known, processes)
    kinds = joined_kinds(part.kinds for part in written)
    if not kinds:
        raise DataError(f"{files[0]}: holds no rows")
    if not all(part.fits for part in written):
        _write(parts, folder, kinds, processes)


def _parts(
    files: Sequence[Path], split: str, processes: int, whole: frozenset[Path] = frozenset()
) -> list[_Part]:
    """Return the parts of files in order; files of `whole` aren't cut."""
    total = sum(file.stat().st_size for file in files)
    size = total // (processes * _PARTS_PER_PROCESS)
    size = min(max(size, _LEAST_BYTES), _MOST_BYTES)
    parts = []
    for file in files:
        end = file.stat().st_size
        if processes == 1 or file in whole or end <= size or not _may_be_cut(file):
            parts.append(_Part(file=file, split=split))
        else:
            starts = range(0, end, size)
            parts += [_Part(file=file, split=split, span=range(at, at + size)) for at in starts]
    return parts


def _may_be_cut(file: Path) -> bool:
    return packing(file) is None and encoding(file) == "utf-8-sig"


def _of_other_forms(parts: Sequence[_Part], written: Sequence[_Written]) -> frozenset[Path]:
    """Return the files whose lines aren't rows; a file of one line may hold them all in it."""
    rows: dict[Path, float] = {}
    for part, result in zip(parts, written, strict=True):
        if part.span is not None:
            count = float("-inf") if result.rows is None else result.rows
            rows[part.file] = rows.get(part.file, 0) + count
    return frozenset(file for file, count in rows.items() if count < 2)


def _write(parts: Sequence[_Part], folder: Path, known: Kinds, processes: int) -> list[_Written]:
    write = partial(_write_part, folder=folder, known=known)
    items = list(enumerate(parts))
    return list(map_in_order(write, items, processes=processes, title="reading JSON"))


def _write_part(item: tuple[int, _Part], *, folder: Path, known: Kinds) -> _Written:
    """Write a part with the columns of `known`, until a row has other ones."""
    number, part = item
    features, kinds, count, fits = features_of(known), Kinds(), 0, True
    with ArrowWriter(path=str(folder / f"{number:06d}.arrow"), features=features) as writer:
        try:
            for batch in batches_of(part.rows()):
                count += len(batch)
                kinds = joined_kinds([kinds, kinds_of(batch)])
                fits = fits and features_of(joined_kinds([known, kinds])) == features
                if fits and features:
                    writer.write_table(to_arrow(batch, features))
        except NotRowsError:
            return _Written(rows=None, kinds={}, fits=False)
        if features:
            writer.finalize()
    return _Written(rows=count, kinds=kinds, fits=fits)


def _lines(file: Path, span: range) -> Iterator[bytes]:
    """Yield the lines that begin in some bytes of a file."""
    with file.open("rb") as stream:
        at = span.start
        if at:  # the line that begins before is another part's; it may be the whole file
            stream.seek(at - 1)
            at += len(stream.readline(len(span) + 1)) - 1
        while at < span.stop and (line := stream.readline()):
            at += len(line)
            yield line
