"""What every judge takes and gives: questions with answers in, scores or comparisons out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from dualign.intervals import wilson


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedQuestion:
    """A question with the answers to be judged, without their traces."""

    key: str
    """names it in messages"""
    messages: tuple[Mapping[str, Any], ...]
    """the conversation up to the answer"""
    answers: tuple[str, ...]
    reference: str | None = None
    """an answer that is known to be good, which the judge sees"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """The scores of a question's answers."""

    scores: tuple[float | None, ...]
    """higher is better; None: it couldn't be judged"""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """judgments that say nothing, by the reasons of a `Comparison`"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Which of two answers is better; None with a reason.

    tie: neither is; order: the two orders disagree; unreadable: the judge wrote no verdict; failed: an
    endpoint gave no answer; too_long: a reward model reads less.
    """

    better: Literal[0, 1] | None
    reason: str = ""


class Judge(Protocol):
    """Something that scores and compares answers."""

    def score(self, questions: Sequence[JudgedQuestion]) -> list[Ranking]:
        """Return the scores of each question's answers.

        Raises:
            EvaluationError: the judge can't be used; what it said until then is kept.
        """

    def compare(self, questions: Sequence[JudgedQuestion]) -> list[Comparison]:
        """Return which of each question's two answers is better.

        Raises:
            EvaluationError: as of `score`.
        """

    def record(self) -> dict[str, Any]:
        """Return what was judged, for run.json."""

    def in_words(self) -> str:
        """Return what was judged, in a line."""


def compare_scores(rankings: Sequence[Ranking]) -> list[Comparison]:
    """Return the comparisons that the scores of two answers make."""
    return [_by_score(ranking) for ranking in rankings]


def _by_score(ranking: Ranking) -> Comparison:
    first, second = ranking.scores
    if first is None or second is None:
        return Comparison(better=None, reason=next(iter(ranking.dropped)))
    if first == second:
        return Comparison(better=None, reason="tie")
    return Comparison(better=0 if first > second else 1)


def share_of(count: int, n: int) -> dict[str, Any]:
    """Return a share with its 95 % interval, for run.json; without observations None, and (0, 1)."""
    low, high = wilson(count / n if n else 0.0, n)
    return {"n": n, "share": count / n if n else None, "ci": [round(low, 4), round(high, 4)]}


def share_words(share: Mapping[str, Any]) -> str:
    """Return a share with its interval in words: `52 % [45, 59] of 180`."""
    if not share["n"]:
        return "none"
    low, high = share["ci"]
    return f"{100 * share['share']:.0f} % [{100 * low:.0f}, {100 * high:.0f}] of {share['n']:,}"
