"""Scores of earlier candidates, beside the run directory: no candidate is scored twice.

`.NAME.answers.jsonl` has every answer of every candidate, under a key of weights, prompt and
settings; `.NAME.scores.jsonl` a line for each candidate that was scored. Both only grow; delete
them when the sweep is finished.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class ScoreCache:
    """The two files of one sweep."""

    folder: Path
    name: str

    @classmethod
    def beside(cls, work: Path) -> "ScoreCache":
        """Return the cache of the sweep whose work folder is `.NAME.partial`."""
        return cls(work.parent, work.name.removeprefix(".").removesuffix(".partial"))

    @property
    def answers(self) -> Path:
        """The file of answers."""
        return self.folder / f".{self.name}.answers.jsonl"

    @property
    def scores(self) -> Path:
        """The file of scores."""
        return self.folder / f".{self.name}.scores.jsonl"

    def read(self) -> dict[str, dict[str, Any]]:
        """Return every candidate that was scored, by its key, without a line that a crash cut.

        Raises:
            CheckpointError: a line isn't a score.
        """
        if not self.scores.is_file():
            return {}
        rows: dict[str, dict[str, Any]] = {}
        lines = self.scores.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines[:-1], 1):
            try:
                row = json.loads(line)
                rows[row["key"]] = row
            except (ValueError, KeyError, TypeError):
                raise CheckpointError(
                    f"{self.scores}:{number}: expected an object with a key; delete the file, and "
                    "its candidates are scored again"
                ) from None
        return rows

    def add(self, row: dict[str, Any]) -> None:
        """Append a line, and wait until it is on the disk."""
        with self.scores.open("a+", encoding="utf-8") as file:
            content = self.scores.read_bytes()
            if content and not content.endswith(b"\n"):  # a crash cut the last line
                os.truncate(self.scores, content.rfind(b"\n") + 1)
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
