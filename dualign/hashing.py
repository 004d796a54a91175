"""SHA-256 of files: of whole ones, and of one while it is being written."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

_READ = 1 << 18  # bytes at once; they stay in the processor's cache


def sha256(file: Path, advance: Callable[[int], object] = lambda size: None) -> str:
    """The file's SHA-256, in hex. `advance` is told how many bytes were read."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_READ))
    with file.open("rb", buffering=0) as stream:
        while size := stream.readinto(buffer):
            digest.update(buffer[:size])
            advance(size)
    return digest.hexdigest()


class StreamingSha256:
    """The SHA-256 of a file whose stretches are written in any order.

    It follows the writing while the bytes are still in memory, so that hashing isn't another pass.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._digest = hashlib.sha256()
        self._buffer = memoryview(bytearray(_READ))
        self._place = 0
        self._written: dict[int, int] = {}

    def add(self, start: int, stop: int) -> None:
        """The bytes [start, stop) are there. Those that nothing is missing before are read."""
        self._written[start] = stop
        while (end := self._written.pop(self._place, self._place)) > self._place:
            while self._place < end:
                piece = self._buffer[: end - self._place]
                size = os.preadv(self._handle, [piece], self._place)
                self._digest.update(piece[:size])
                self._place += size

    def hexdigest(self) -> str:
        """Of what was read."""
        assert not self._written, "a stretch before these is missing"
        return self._digest.hexdigest()
