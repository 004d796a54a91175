"""Read and write the header of a safetensors file: the place of each tensor, and nothing more.

Merging, folding and comparing need tensors in pieces and without torch, so the format is read here:
8 bytes with the length of the header, the header as JSON, then the tensors. A file is refused
unless its tensors fill it without gaps or overlaps.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

from dualign.errors import CheckpointError

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: `nbytes` bytes from `offset` on."""

    shape: tuple[int, ...]
    dtype: str
    file: Path
    offset: int

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * BITS[self.dtype] // 8


def read_header(file: Path) -> dict[str, Entry]:
    """Read the tensors' places in a file, by name.

    Raises:
        CheckpointError: there is no such file, or it isn't a whole safetensors file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            fits = size >= 8 and length <= min(size - 8, _MAX_HEADER_BYTES)
            text = stream.read(length) if fits else b""
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{file}: can't be read: {error.strerror}") from None
    if not fits:
        raise _broken(file, f"{size} bytes can't hold a header of {length}")
    return _entries(file, _parsed(file, text), 8 + length, size)


def write_header(tensors: Sequence[TensorSpec]) -> bytes:
    """Return the header of a file with these tensors in order, padded to a multiple of 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    ends = list(accumulate(tensor.nbytes for tensor in tensors))
    for tensor, end in zip(tensors, ends, strict=True):
        span = [end - tensor.nbytes, end]
        header[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": span
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _parsed(file: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _broken(file, f"its header isn't JSON: {error}") from None
    if not isinstance(header, dict):
        raise _broken(file, f"its header is {type(header).__name__}, not an object")
    header.pop("__metadata__", None)
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{duplicate!r} is given twice")
    return value


def _entries(file: Path, header: dict[str, Any], start: int, size: int) -> dict[str, Entry]:
    spans: list[tuple[int, int, str]] = []
    entries: dict[str, Entry] = {}
    for name, value in header.items():
        begin, end, shape, dtype = _fields(file, name, value)
        needed = prod(shape) * BITS[dtype]
        if needed != (end - begin) * 8:
            raise _broken(file, f"{name} is {dtype} {shape} in {end - begin} bytes")
        spans.append((begin, end, name))
        entries[name] = Entry(tuple(shape), dtype, file, start + begin)
    place = 0
    for begin, end, name in sorted(spans):
        if begin != place:
            raise _broken(file, f"{name} starts at byte {begin}, expected {place}")
        place = end
    if start + place != size:
        raise _broken(file, f"its tensors end at byte {start + place}, the file at {size}")
    return entries


def _fields(file: Path, name: str, value: Any) -> tuple[int, int, list[int], str]:
    try:
        (begin, end), shape, dtype = value["data_offsets"], value["shape"], value["dtype"]
        valid = begin <= end and all(type(n) is int and n >= 0 for n in (begin, end, *shape))
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid:
        raise _broken(file, f"the entry of {name} isn't a type, a shape and two offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _broken(file, f"{name} has the unknown type {dtype!r}")
    return begin, end, list(shape), dtype


def _broken(file: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{file}: not a whole safetensors file ({why}); fetch or write it again")
