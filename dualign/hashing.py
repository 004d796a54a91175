"""SHA-256 of files: of whole ones, and of one while it is being written."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

_READ = 1 << 18  # bytes at once; they stay in the processor's cache


def sha256(file: Path, advance: Callable[[int], object] = lambda size: None) -> str:
    """Return the file's SHA-256, in hex. `advance` gets the number of bytes after each read."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_READ))
    with file.open("rb", buffering=0) as stream:
        while size := stream.readinto(buffer):
            digest.update(buffer[:size])
            advance(size)
    return digest.hexdigest()


def hashes_of(files: Iterable[Path]) -> dict[str, str]:
    """Return FOLDER/FILE -> SHA-256, so that a base's and an adapter's files stay apart."""
    return {f"{file.parent.name}/{file.name}": sha256(file) for file in files}


class StreamingSha256:
    """SHA-256 of a file whose ranges are written in any order.

    It reads what is written while the bytes are still in memory, so hashing isn't another pass.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._digest = hashlib.sha256()
        self._buffer = memoryview(bytearray(_READ))
        self._place = 0
        self._written: dict[int, int] = {}

    def add(self, start: int, stop: int) -> None:
        """Note that the bytes [start, stop) are written; hash all up to the first gap."""
        self._written[start] = stop
        while (end := self._written.pop(self._place, self._place)) > self._place:
            while self._place < end:
                piece = self._buffer[: end - self._place]
                size = os.preadv(self._handle, [piece], self._place)
                self._digest.update(piece[:size])
                self._place += size

    def hexdigest(self) -> str:
        """Return the hash of all bytes."""
        assert not self._written, "an earlier range is missing"
        return self._digest.hexdigest()
