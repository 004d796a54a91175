"""Options of `datasets` for files: columns of JSON and CSV, packed Parquet and Arrow.

`datasets` infers columns from the first ten megabytes: a key that comes up later (the first trace,
the first tool call) stops it, and a CSV answer of 42 becomes a number, one of NA nothing. So
columns are inferred here, from all rows.

It reads the schemas of packed Parquet and Arrow files before it would unpack them. What it does
unpack is cached by path and gives the old rows of a file that was written again. So files are
unpacked here, under the hash of the packed one.
"""

import csv
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import fsspec

from dualign.errors import DataError
from dualign.hashing import sha256

_WHITESPACE = b" \t\r\n"
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?:[ T][\d:.]+Z?)?")
_PACKED_INSIDE = ("parquet", "arrow")
_PACKED = (".gz", ".bz2", ".xz", ".zst")


class _Date:
    """The kind of texts that Arrow would take for times, if a column holds nothing else."""


def json_features(files: Sequence[Path]) -> datasets.Features | None:
    """Return a column for each key that any row has. Lists, objects and values of several kinds are
    kept as they are. None if a file isn't rows of objects: then `datasets` reports its fault.
    """
    kinds: dict[str, set[type]] = {}
    try:
        for row in _rows(files):
            for key, value in row.items():
                kinds.setdefault(key, set()).add(_kind(value))
    except (AttributeError, UnicodeDecodeError, ValueError):
        return None
    return datasets.Features({key: _feature(of_key) for key, of_key in kinds.items()}) or None


def csv_options(files: Sequence[Path]) -> dict[str, Any]:
    """Return options that make every column text, and nothing but an empty field a missing value."""
    sep = "\t" if all(".tsv" in file.suffixes for file in files) else ","
    with fsspec.open(str(files[0]), "rt", compression="infer", encoding="utf-8-sig") as lines:
        header = next(csv.reader(lines, delimiter=sep), [])
    options: dict[str, Any] = {"sep": sep, "keep_default_na": False, "na_values": [""]}
    if header and len(set(header)) == len(header):
        text = datasets.Value("string")
        options["features"] = datasets.Features(dict.fromkeys(header, text))
    return options


def unpack_files(files: list[Path], kind: str) -> list[str]:
    """Return files of a kind in a form that `datasets` can read."""
    if kind not in _PACKED_INSIDE:
        return [str(file) for file in files]
    return [str(_unpack(file) if file.suffix.lower() in _PACKED else file) for file in files]


def require_zstandard(source: str, files: list[Path]) -> None:
    """Raise DataError for .zst files if the package that reads them is missing."""
    if any(file.suffix.lower() == ".zst" for file in files) and find_spec("zstandard") is None:
        raise DataError(
            f"source {source!r}: .zst files need the package zstandard: pip install 'dualign[data]'"
        )


def _rows(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        with fsspec.open(str(file), "rb", compression="infer") as lines:
            head = next((line for line in lines if line.strip(_WHITESPACE)), b"")
            if head.lstrip(b"\xef\xbb\xbf" + _WHITESPACE).startswith(b"["):
                yield from json.loads(head + lines.read())
                continue
            if head:
                yield json.loads(head.decode("utf-8-sig"))
            yield from (json.loads(line) for line in lines if line.strip(_WHITESPACE))


def _kind(value: Any) -> type:
    return _Date if isinstance(value, str) and _DATE.fullmatch(value) else type(value)


def _feature(kinds: set[type]) -> Any:
    present = kinds - {type(None)}
    if present == {_Date}:
        return datasets.Json()
    if present <= {str, _Date}:
        return datasets.Value("string")
    if present == {bool}:
        return datasets.Value("bool")
    if present == {int}:
        return datasets.Value("int64")
    return datasets.Value("float64") if present <= {int, float} else datasets.Json()


def _unpack(file: Path) -> Path:
    target = Path(datasets.config.HF_DATASETS_CACHE) / "unpacked" / sha256(file)
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(dir=target.parent)
        packed = fsspec.open(str(file), "rb", compression="infer")
        with packed as stream, os.fdopen(handle, "wb") as plain:
            shutil.copyfileobj(stream, plain)
        Path(path).replace(target)
    return target
