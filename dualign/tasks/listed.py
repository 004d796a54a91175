"""A task whose problems are there already: made, or read from a published form."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from dualign.switch import Switch
from dualign.tasks.base import Problem
from dualign.verifiers.base import Verifier


def stamp(*files: Path) -> tuple[tuple[int, int], ...]:
    """Return what changes when one of the files that are there does."""
    stats = [file.stat() for file in files if file.is_file()]
    return tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedTask:
    """Problems with what checks their answers."""

    name: str
    rows: str
    """the reference, without a file"""
    check: Verifier
    listed: tuple[Problem, ...]
    bare: tuple[str, ...] = ()
    """the questions without instructions, if there are any"""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """rows that aren't asked, by reason"""
    dataset: Mapping[str, Any] = field(default_factory=dict)
    """`path`, `config` and `split` of the published data set, if it is one"""
    max_new_tokens: int | None = None
    max_new_tokens_no_think: int | None = None
    switch: Switch | None = None

    @property
    def digest(self) -> str | None:
        rows = [
            [problem.id, list(problem.messages), problem.expected, list(problem.tools)]
            for problem in self.listed
        ]
        return sha256(json.dumps([self.settings(), rows], default=str).encode()).hexdigest()

    def load_problems(self) -> tuple[Problem, ...]:
        return self.listed

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "verifier": repr(self.check)}

    def without_instruction(self) -> "ListedTask":
        if not self.bare:
            return self
        listed = tuple(
            replace(problem, messages=({"role": "user", "content": text},))
            for problem, text in zip(self.listed, self.bare, strict=True)
        )
        return replace(self, listed=listed, bare=())
