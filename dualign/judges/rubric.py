"""A model that gives each answer a score by a rubric."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from statistics import fmean
from typing import Any

from dualign.generation.samples import SampleFile
from dualign.judges.base import Comparison, JudgedQuestion, Ranking, compare_scores
from dualign.judges.config import RubricConfig
from dualign.judges.prompts import rubric_prompt
from dualign.judges.writer import PROBE, Judgment, JudgmentWriter


class RubricJudge:
    """A model that scores; `Judge` says what it gives."""

    def __init__(self, config: RubricConfig, file: SampleFile, *, label: str, seed: int) -> None:
        self._config = config
        self._writer = JudgmentWriter(config, file, label=label, seed=seed)
        self._scores: list[float] = []

    def score(self, questions: Sequence[JudgedQuestion]) -> list[Ranking]:
        """Return the scores of each question's answers: one request for each answer.

        Raises:
            EvaluationError: the judge can't be used, or can't be read.
        """
        texts = [
            rubric_prompt(
                question.messages,
                answer,
                rubric=self._config.rubric,
                scale=self._config.scale,
                reference=question.reference,
                control=self._writer.control,
            )
            for question in questions
            for answer in question.answers
        ]
        judgments: list[Judgment[float]] = []
        for part in (texts[:PROBE], texts[PROBE:]):
            judgments += self._writer.judgments(part, self._number)
        self._scores += [j.value for j in judgments if j.value is not None]
        rest = iter(judgments)
        return [_ranking(list(islice(rest, len(question.answers)))) for question in questions]

    def compare(self, questions: Sequence[JudgedQuestion]) -> list[Comparison]:
        """Return which of each question's two answers has the higher score."""
        return compare_scores(self.score(questions))

    def record(self) -> dict[str, Any]:
        """Return the counts for run.json, with the mean score and how often each was given."""
        by_score = {f"{score:g}": n for score, n in sorted(Counter(self._scores).items())}
        mean = round(fmean(self._scores), 4) if self._scores else None
        return {**self._writer.record(), "mean_score": mean, "scores": by_score}

    def in_words(self) -> str:
        """Return what was judged, in a line."""
        record = self.record()
        unread = ", ".join(
            f"{name} {record[name]:,}" for name in ("unreadable", "failed") if record[name]
        )
        scores = f"{len(self._scores):,} scores"
        mean = f", {record['mean_score']:.2f} on average" if self._scores else ""
        return f"judge {record['model']}: {scores}{mean}" + (f"; {unread}" if unread else "")

    def _number(self, judgment: Mapping[str, Any]) -> float | None:
        """Return the score of `{"score": 7}`; None of anything else, or out of the scale."""
        score = judgment.get("score")
        if len(judgment) != 1 or isinstance(score, bool) or not isinstance(score, int | float):
            return None
        return float(score) if self._config.has(score) else None


def _ranking(judgments: Sequence[Judgment[float]]) -> Ranking:
    return Ranking(
        scores=tuple(judgment.value for judgment in judgments),
        dropped=dict(Counter(judgment.reason for judgment in judgments if judgment.reason)),
    )
