"""A problem before its length is chosen: what is fixed, and what grows with the size."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_GOLDEN = 0.6180339887498949  # steps of this size fill an interval evenly, however many there are


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A problem in all sizes; its expected texts are the same in each."""

    expected: tuple[str, ...]
    text: Callable[[int], str]
    """the user's turn at a size: sentences, lines or words of the haystack"""
    smallest: int
    largest: int | None = None
    """None: it grows without end"""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """plain facts about it, for samples.jsonl"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """The random numbers of a problem: the same in every language and at every length."""

    seed: int
    form: str
    number: int

    def stream(self, purpose: str) -> random.Random:
        """Return a stream of its own for each purpose, so that one doesn't shift the other."""
        return random.Random(f"{self.seed}:{self.form}:{self.number}:{purpose}")

    def depth(self) -> float:
        """Return where the asked needle lies, from 0 (start) to 1: problems cover the depths evenly."""
        start = random.Random(f"{self.seed}:{self.form}:depth").random()
        return (start + self.number * _GOLDEN) % 1
