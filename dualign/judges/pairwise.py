"""A model that says which of two answers is better, asked in both orders.

A pair on which the two orders disagree is dropped: the judge saw the place, not the answer. Models
prefer a place often (Zheng et al. 2023, arXiv 2306.05685, section 3.4).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, Literal

from dualign.errors import EvaluationError
from dualign.generation.samples import SampleFile
from dualign.judges.base import (
    Comparison,
    JudgedQuestion,
    Ranking,
    share_of,
    share_words,
)
from dualign.judges.config import PairwiseConfig
from dualign.judges.prompts import pairwise_prompt, visible
from dualign.judges.writer import PROBE, Judgment, JudgmentWriter

_VERDICTS = ("A", "B", "tie")


class PairwiseJudge:
    """A model that compares; `Judge` says what it gives."""

    def __init__(self, config: PairwiseConfig, file: SampleFile, *, label: str, seed: int) -> None:
        self._config = config
        self._writer = JudgmentWriter(config, file, label=label, seed=seed)
        self._outcomes: Counter[str] = Counter()
        """comparisons, by decided or the reason against it; identical: two answers that are one text"""
        self._places: Counter[str] = Counter()
        """verdicts by what they name: A, B, tie"""

    def compare(self, questions: Sequence[JudgedQuestion]) -> list[Comparison]:
        """Return which of each question's two answers is better.

        Two answers that are one text are a tie, and aren't asked.

        Raises:
            EvaluationError: the judge can't be used, can't be read, or decides by place.
        """
        first = PROBE // 2
        comparisons: list[Comparison] = []
        for part in (questions[:first], questions[first:]):
            comparisons += self._compare(part)
            self._require_consistent()
        return comparisons

    def score(self, questions: Sequence[JudgedQuestion]) -> list[Ranking]:
        """Return each answer's wins less its losses against all others; None if nothing was said of it.

        N answers make N (N - 1) requests.
        """
        duels = [
            (number, pair)
            for number, question in enumerate(questions)
            for pair in combinations(range(len(question.answers)), 2)
        ]
        comparisons = self.compare(
            [
                replace(questions[n], answers=(questions[n].answers[i], questions[n].answers[j]))
                for n, (i, j) in duels
            ]
        )
        scores: list[list[float | None]] = [[None] * len(q.answers) for q in questions]
        dropped = [Counter[str]() for _ in questions]
        for (number, pair), comparison in zip(duels, comparisons, strict=True):
            if comparison.reason:
                dropped[number][comparison.reason] += 1
            if comparison.reason in ("unreadable", "failed"):
                continue
            for place, answer in enumerate(pair):
                gain = 0 if comparison.better is None else 1 if comparison.better == place else -1
                scores[number][answer] = (scores[number][answer] or 0.0) + gain
        return [
            Ranking(scores=tuple(of_question), dropped=dict(reasons))
            for of_question, reasons in zip(scores, dropped, strict=True)
        ]

    def record(self) -> dict[str, Any]:
        """Return the counts for run.json.

        `consistent`: the share of the comparisons decided in some order that both orders decide alike;
        `first_place`: the share of the verdicts for A or B that name A, 0.5 for a judge who ignores the
        place.
        """
        names = ("decided", "tie", "order", "unreadable", "failed", "identical")
        first, second = self._places["A"], self._places["B"]
        return {
            **self._writer.record(),
            "comparisons": {name: self._outcomes[name] for name in names},
            "consistent": self._consistent,
            "first_place": share_of(first, first + second),
        }

    def in_words(self) -> str:
        """Return what was judged, in a line."""
        record = self.record()
        reasons = ", ".join(f"{name} {n:,}" for name, n in record["comparisons"].items() if n)
        return (
            f"judge {record['model']}: {reasons or 'nothing to compare'}; both orders agree in "
            f"{share_words(record['consistent'])}; the first place is preferred in "
            f"{share_words(record['first_place'])}"
        )

    @property
    def _consistent(self) -> dict[str, Any]:
        decided = self._outcomes["decided"]
        return share_of(decided, decided + self._outcomes["order"])

    def _compare(self, questions: Sequence[JudgedQuestion]) -> list[Comparison]:
        shown = [tuple(map(visible, question.answers)) for question in questions]
        asked = [n for n, (a, b) in enumerate(shown) if a != b]
        texts = [
            pairwise_prompt(
                questions[n].messages,
                order,
                criteria=self._config.criteria,
                reference=questions[n].reference,
                control=self._writer.control,
            )
            for n in asked
            for order in ((shown[n][0], shown[n][1]), (shown[n][1], shown[n][0]))
        ]
        judgments = self._writer.judgments(texts, _verdict)
        comparisons = [Comparison(better=None, reason="tie")] * len(questions)
        self._outcomes["identical"] += len(questions) - len(asked)
        for n, first, second in zip(asked, judgments[::2], judgments[1::2], strict=True):
            comparisons[n] = _comparison(first, second)
            self._outcomes[comparisons[n].reason or "decided"] += 1
            self._places.update(j.value for j in (first, second) if j.value is not None)
        return comparisons

    def _require_consistent(self) -> None:
        consistent, least = self._consistent, self._config.min_consistent
        if consistent["n"] == 0 or consistent["ci"][1] >= least:
            return
        places = share_of(self._places["A"], self._places["A"] + self._places["B"])
        raise EvaluationError(
            f"judge {self._writer.model}: asked in both orders, it prefers the same answer in only "
            f"{share_words(consistent)} comparisons that it decides, and the first place in "
            f"{share_words(places)} verdicts: it decides by place. Take a stronger model, mode: think, or "
            f"other criteria; min_consistent ({least:g}) is the bound"
        )


def _verdict(judgment: Mapping[str, Any]) -> str | None:
    """Return A, B or tie of `{"better": "A"}`; None of anything else."""
    better = judgment.get("better")
    return better if len(judgment) == 1 and better in _VERDICTS else None


def _comparison(first: Judgment[str], second: Judgment[str]) -> Comparison:
    """Return what the verdicts say in the two orders; in the second, A is the second answer."""
    if reason := first.reason or second.reason:
        return Comparison(better=None, reason=reason)
    by_verdict: dict[str, Literal[0, 1]] = {"AB": 0, "BA": 1}
    verdicts = f"{first.value}{second.value}"
    if verdicts in by_verdict:
        return Comparison(better=by_verdict[verdicts])
    return Comparison(better=None, reason="tie" if verdicts == "tietie" else "order")
