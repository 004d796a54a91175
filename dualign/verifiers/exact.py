"""Compare whole texts."""

from dataclasses import dataclass
from typing import Any, Literal

from dualign.verifiers.base import RIGHT, Verdict, Verifier, wrong

_QUOTES = "\"'`*_\u201c\u201d\u2018\u2019"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExactVerifier(Verifier):
    """The whole answer; case, spaces, quotes, emphasis and a final full stop don't count."""

    kind: Literal["exact"] = "exact"
    """this kind of verifier"""

    def judge(self, answer: str, expected: Any) -> Verdict:
        return RIGHT if plain(answer) == plain(expected) else wrong("differs")

    def vote(self, answer: str, expected: Any) -> str | None:
        return plain(answer) or None


def plain(text: str) -> str:
    """Return a text without what doesn't count: `**Red.** ` is `red`."""
    text = " ".join(text.casefold().split()).strip(_QUOTES + " ")
    return text.removesuffix(".").strip(_QUOTES + " ")
