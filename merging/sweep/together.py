"""Several merges of the same models, from inputs that are read once.

Reading, checking and widening a block takes a third of a linear merge. Where merges are computed side by side, block by
block in one thread, the second finds the block that the first has read.
"""

import copy
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualign.checkpoints.checkpoint import Reader, Weights
from dualign.checkpoints.header import Entry
from dualign.checkpoints.numbers import Array
from dualign.merging.merged import Merged


class ReadOnce:
    """The same weights; each thread keeps the block that it read last."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.folders: tuple[Path, ...] = weights.folders
        self.config: Mapping[str, Any] = weights.config
        self.entries: Mapping[str, Entry] = weights.entries
        self.files: tuple[Path, ...] = weights.files
        self._last = threading.local()

    def reader(self, name: str) -> Reader:
        inner, last = self.weights.reader(name), self._last

        def read(start: int, stop: int) -> Array:
            if getattr(last, "place", None) != (name, start, stop):
                last.values = inner.read(start, stop)
                last.values.flags.writeable = False  # the next merge gets it too
                last.place = (name, start, stop)
            values: Array = last.values
            return values

        return Reader(read, step=inner.step, in_parts=inner.in_parts)


def together(merges: Sequence[Merged]) -> list[Merged]:
    """The same merges, reading through one another's blocks. They must have the same models."""
    shared = {name: ReadOnce(weights) for name, weights in merges[0].models.items()}
    found = []
    for one in merges:
        assert one.models.keys() == shared.keys(), "merges of the same models"
        twin = copy.copy(one)
        twin.models = shared
        found.append(twin)
    return found
