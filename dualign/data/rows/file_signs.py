"""What a file is by its first bytes, which may not be what its name says."""

from collections.abc import Iterator
from pathlib import Path

import fsspec

from dualign.errors import DataError

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_SIGNS = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself. Get it with `git lfs pull`",
    ),
    (b"PK\x03\x04", "a zip archive. Unpack it; a Word document is named .docx"),
    (b"PAR1", "a Parquet file. Name it .parquet"),
    (b"ARROW1", "an Arrow file. Name it .arrow"),
    (b"%PDF", "a PDF. Name it .pdf"),
    (b"SQLite format 3", "an SQLite database. Export its rows as JSON lines"),
    (b"\x89HDF", "an HDF5 file. Export its rows as JSON lines"),
    (b"\x80\x04", "a pickle. Export its rows as JSON lines"),
    (b"<!doctype", "a web page. Download the file itself"),
    (b"<html", "a web page. Download the file itself"),
)
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_HEAD = 512
_CHUNK = 1 << 20


def packing(file: Path) -> str | None:
    """Return how a file is compressed, by its bytes; None if it isn't."""
    head = _head(file, None)
    return next((name for sign, name in _PACKED.items() if head.startswith(sign)), None)


def encoding(file: Path) -> str:
    """Return the encoding of a text file, as far as its first bytes say it."""
    head = _head(file, packing(file))
    if head[:2] in _MARKS:
        return _MARKS[head[:2]]
    zeros = [byte == 0 for byte in head[:4]]
    if zeros == [False, True, False, True]:
        return "utf-16-le"
    if zeros == [True, False, True, False]:
        return "utf-16-be"
    return "utf-8-sig"


def binary_lines(file: Path) -> Iterator[bytes]:
    """Yield the lines of a file, unpacked, without their ends."""
    pending: list[bytes] = []
    with fsspec.open(str(file), "rb", compression=packing(file)) as stream:
        while chunk := stream.read(_CHUNK):
            first, *more = chunk.split(b"\n")
            pending.append(first)
            if more:
                yield b"".join(pending)
                *whole, last = more
                yield from whole
                pending = [last]
    yield b"".join(pending)


def check_sign(file: Path, kind: str) -> None:
    """Raise DataError if the first bytes of a file belong to another kind of file."""
    head = _head(file, packing(file))
    for sign, what in _SIGNS:
        if head.lower().lstrip().startswith(sign.lower()) and not _is_expected(sign, kind, file):
            raise DataError(f"{file}: looks like {what}. Expected rows as {kind}.")
    if kind == "parquet" and not head.startswith(b"PAR1"):
        raise DataError(f"{file}: isn't a Parquet file: it begins with {head[:20]!r}.")


def is_empty(file: Path) -> bool:
    """Return whether a file holds nothing but white space."""
    if _head(file, packing(file)).lstrip(b"\xef\xbb\xbf").strip():
        return False
    with fsspec.open(str(file), "rb", compression=packing(file)) as stream:
        chunks = iter(lambda: stream.read(_CHUNK), b"")
        return not any(chunk.lstrip(b"\xef\xbb\xbf").strip() for chunk in chunks)


def undecodable(file: Path, line: int, error: UnicodeError) -> DataError:
    """Return the error of a line that isn't UTF-8."""
    return DataError(
        f"{file}, line {line}: isn't UTF-8 ({error}). It may be Latin-1 or Windows-1252, which can't "
        f"be told apart: convert it, for example with `iconv -f WINDOWS-1252 -t UTF-8 {file.name}`."
    )


def _is_expected(sign: bytes, kind: str, file: Path) -> bool:
    of_name = {b"%PDF": ".pdf", b"PK\x03\x04": ".docx"}.get(sign)
    return (sign, kind) in ((b"PAR1", "parquet"), (b"ARROW1", "arrow")) or (
        kind == "text" and of_name in [suffix.lower() for suffix in file.suffixes]
    )


def _head(file: Path, compression: str | None) -> bytes:
    try:
        with fsspec.open(str(file), "rb", compression=compression) as stream:
            head: bytes = stream.read(_HEAD)
            return head
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{file}: can't be unpacked: {error}") from error
