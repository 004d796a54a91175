"""Rows that several machines prepare, each a part of them.

All see one folder. A worker writes its own shards into it and ends; whoever joins them goes on with all
of them, and writes those that are missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NoReturn, TypeVar

from dualign.errors import DualignError

Item = TypeVar("Item")


class PartDoneError(DualignError):
    """A worker has done its part, and nothing else is there to do for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """The part of worker `worker` of `workers`: every shard whose number leaves `worker` when it is
    divided by `workers`; None: all, as the one who joins them. The data path sets `folder`.
    """

    worker: int | None
    workers: int
    folder: Path = Path()

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Return the items of this part."""
        return list(items if self.worker is None else items[self.worker :: self.workers])

    def table_folder(self, title: str) -> Path:
        """Return the folder of a table's shards. How many workers there are decides what they are."""
        return self.folder / str(self.workers) / sha256(title.encode()).hexdigest()[:12]

    def missing(self, paths: Sequence[Path]) -> list[int]:
        """Return the workers that haven't written all of their shards."""
        return sorted({at % self.workers for at, path in enumerate(paths) if not path.exists()})

    def end(self, doing: str, missing: Sequence[int]) -> NoReturn:
        """Say what has been done.

        Raises:
            PartDoneError: always.
        """
        others = f"; worker {', '.join(map(str, missing))} hasn't ended yet" if missing else ""
        raise PartDoneError(f"worker {self.worker} of {self.workers}: {doing}: done{others}")
