"""Packed Parquet and Arrow files: `datasets` reads their schemas before it would unpack them.

What it does unpack by itself goes by the path, and gives the old rows of a file that was written
again; so files are kept here by the bytes of the packed one.
"""

import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import datasets
import fsspec

from dualign.errors import DataError
from dualign.hashing import sha256

_INSIDE = ("parquet", "arrow")
_PACKED = (".gz", ".bz2", ".xz", ".zst")


def unpacked(files: list[Path], kind: str) -> list[str]:
    """The files as `datasets` can read them."""
    if kind not in _INSIDE:
        return [str(file) for file in files]
    return [str(_unpack(one) if one.suffix.lower() in _PACKED else one) for one in files]


def need_zstandard(source: str, files: list[Path]) -> None:
    """Refuse .zst files where the package that reads them is missing."""
    if any(file.suffix.lower() == ".zst" for file in files) and find_spec("zstandard") is None:
        raise DataError(
            f"source {source!r}: .zst files need the package zstandard: pip install 'dualign[data]'"
        )


def _unpack(file: Path) -> Path:
    place = Path(datasets.config.HF_DATASETS_CACHE) / "unpacked" / sha256(file)
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(dir=place.parent)
        packed = fsspec.open(str(file), "rb", compression="infer")
        with packed as stream, os.fdopen(handle, "wb") as plain:
            shutil.copyfileobj(stream, plain)
        Path(path).replace(place)
    return place
