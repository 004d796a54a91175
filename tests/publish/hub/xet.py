"""Xet storage, as much of it as uploads need: https://huggingface.co/docs/xet/index

Clients cut files into chunks, send the new ones in blocks (xorbs), and then a shard that says which chunks of which
blocks make up which file.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

_WITH_VERIFICATION, _WITH_SHA256 = 1 << 31, 1 << 30
_RECORD = 48


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Chunks `first` to `last` (not with it) of a block, `size` bytes when unpacked."""

    xorb: str
    size: int
    first: int
    last: int


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    segments: tuple[Segment, ...]
    sha256: str


def files_of(shard: bytes) -> Iterator[File]:
    """The files that a shard describes: a header, then for each file a run of 48-byte records."""
    records = (shard[at : at + _RECORD] for at in range(_RECORD, len(shard), _RECORD))
    for record in records:
        if record[:32] == b"\xff" * 32:
            return
        flags, count = struct.unpack("<II", record[32:40])
        segments = tuple(_segment(next(records)) for _ in range(count))
        if flags & _WITH_VERIFICATION:
            for _ in range(count):
                next(records)
        sha256 = _hex(next(records)[:32]) if flags & _WITH_SHA256 else ""
        yield File(segments=segments, sha256=sha256)


def content_of(file: File, block: Callable[[str], bytes]) -> bytes:
    """The file's bytes from its blocks. `block`: name -> packed bytes."""
    pieces = []
    for segment in file.segments:
        chunks = list(chunks_of(block(segment.xorb)))[segment.first : segment.last]
        piece = b"".join(chunks)
        assert len(piece) == segment.size
        pieces.append(piece)
    content = b"".join(pieces)
    assert hashlib.sha256(content).hexdigest() == file.sha256
    return content


def chunks_of(xorb: bytes) -> Iterator[bytes]:
    """Each chunk, unpacked: version (1 byte), packed size (3), how it is packed (1), size (3), and the packed bytes."""
    at = 0
    while at + 8 <= len(xorb) and xorb[at] == 0:
        packed, scheme, size = _u24(xorb, at + 1), xorb[at + 4], _u24(xorb, at + 5)
        body = xorb[at + 8 : at + 8 + packed]
        at += 8 + packed
        yield body if scheme == 0 else _unpack(body, scheme, size)


def _unpack(body: bytes, scheme: int, size: int) -> bytes:
    plain = pa.Codec("lz4").decompress(body, decompressed_size=size).to_pybytes()
    if scheme == 1:
        return bytes(plain)
    # Every fourth byte stands together: floats pack better by their exponents.
    whole = bytearray(size)
    at = 0
    for lane in range(4):
        count = len(range(lane, size, 4))
        whole[lane::4] = plain[at : at + count]
        at += count
    return bytes(whole)


def _segment(record: bytes) -> Segment:
    _, size, first, last = struct.unpack("<IIII", record[32:48])
    return Segment(xorb=_hex(record[:32]), size=size, first=first, last=last)


def _hex(hash: bytes) -> str:
    """Hashes are written as four little-endian numbers."""
    return "".join(hash[at : at + 8][::-1].hex() for at in range(0, 32, 8))


def _u24(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")
