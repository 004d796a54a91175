"""What was scored before, beside the run directory, so that a crash or a wider grid costs nothing twice.

`.NAME.answers.jsonl` has every answer of every candidate, under a key of weights, prompt and settings;
`.NAME.scores.jsonl` a line for each candidate that was scored. Both only grow; delete them when the sweep is done with.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Memory:
    """The two files of one sweep."""

    folder: Path
    name: str

    @property
    def answers(self) -> Path:
        return self.folder / f".{self.name}.answers.jsonl"

    @property
    def scores(self) -> Path:
        return self.folder / f".{self.name}.scores.jsonl"

    def read(self) -> dict[str, dict[str, Any]]:
        """Every candidate that was scored, by its key; a line that a crash cut is left out."""
        if not self.scores.is_file():
            return {}
        found: dict[str, dict[str, Any]] = {}
        lines = self.scores.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines[:-1], 1):
            try:
                row = json.loads(line)
                found[row["key"]] = row
            except (ValueError, KeyError, TypeError):
                raise CheckpointError(
                    f"{self.scores}:{number}: expected an object with a key; delete the file, and "
                    "its candidates are scored again"
                ) from None
        return found

    def add(self, row: dict[str, Any]) -> None:
        """Write a line down, whole and on the disk."""
        with self.scores.open("a+", encoding="utf-8") as file:
            _end_cut_line(self.scores)
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _end_cut_line(path: Path) -> None:
    """Drop what a crash left behind the last whole line."""
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def memory_of(work: Path) -> Memory:
    """That of the sweep whose work folder is `.NAME.partial`."""
    name = work.name.removeprefix(".").removesuffix(".partial")
    return Memory(work.parent, name)
