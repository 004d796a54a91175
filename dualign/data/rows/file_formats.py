"""Options of `datasets` for files: columns of CSV, packed Parquet and Arrow.

`datasets` makes a number of a CSV answer of 42, and nothing of one of NA: here all fields are text.

It reads the schemas of packed Parquet and Arrow files before it would unpack them. What it does
unpack is cached by path and gives the old rows of a file that was written again. So files are
unpacked here, under the hash of the packed one.
"""

import csv
import os
import shutil
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import fsspec

from dualign.data.rows.file_signs import binary_lines, encoding, packing, undecodable
from dualign.errors import DataError
from dualign.hashing import sha256

_PACKED_INSIDE = ("parquet", "arrow")
_PACKED = (".gz", ".bz2", ".xz", ".zst")


def csv_options(files: Sequence[Path]) -> dict[str, Any]:
    """Return options that make every column text, and nothing but an empty field a missing value.

    Raises:
        DataError: a file isn't in the encoding that its first bytes show, or files differ in it.
    """
    sep = "\t" if all(".tsv" in file.suffixes for file in files) else ","
    forms = {encoding(file) for file in files}
    if len(forms) > 1:
        raise DataError(f"its files are in {' and '.join(sorted(forms))}. Expected one encoding.")
    (form,) = forms
    for file in files:
        _check_encoding(file, form)
    first = str(files[0])
    with fsspec.open(first, "rt", compression=packing(files[0]), encoding=form) as lines:
        header = next(csv.reader(lines, delimiter=sep), [])
    options: dict[str, Any] = {"sep": sep, "keep_default_na": False, "na_values": [""]}
    options["encoding"] = form
    if header and len(set(header)) == len(header):
        text = datasets.Value("string")
        options["features"] = datasets.Features(dict.fromkeys(header, text))
    return options


def _check_encoding(file: Path, form: str) -> None:
    if form != "utf-8-sig":
        return
    for number, line in enumerate(binary_lines(file), 1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            raise undecodable(file, number, error) from error


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
