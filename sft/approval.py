"""Whether a model's answer is accepted: a verifier compares it with the row's own, or a judge says so."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dualign.data.questions import Question
from dualign.data.text.trace_form import message_dict
from dualign.generation.samples import SampleFile
from dualign.judges.base import Comparison, Judge, JudgedQuestion, Ranking
from dualign.judges.config import PairwiseConfig
from dualign.judges.table import open_judge
from dualign.sft.config import TracesStage
from dualign.terminal import wide_console
from dualign.verifiers.base import Verifier

_Answered = Sequence[tuple[Question, str]]
"""Questions, each with the answer of a model."""


class Approval:
    """The verifier or the judge of a stage. Judgments go into the stage's folder as they come."""

    def __init__(self, stage: TracesStage, work: Path, *, seed: int) -> None:
        """Open the judge, if there is one; `open_judge` says what it raises."""
        self._stage = stage
        self._judge: Judge | None = None
        if stage.judge is not None:
            file = SampleFile(work / "judgments.jsonl")
            self._judge = open_judge(stage.judge, file, label=stage.name, seed=seed)

    def reasons(self, answered: _Answered) -> list[str]:
        """Return why each answer is rejected; "" if it isn't.

        Raises:
            EvaluationError: the verifier fails, or the judge can't be used.
        """
        if self._judge is None:
            assert self._stage.check is not None, "a stage has a verifier or a judge"
            return [_wrong(self._stage.check, *pair) for pair in answered]
        if isinstance(self._stage.judge, PairwiseConfig):
            return [
                _worse(c) for c in self._judge.compare([_against_row(*pair) for pair in answered])
            ]
        rankings = self._judge.score([_with_reference(*pair) for pair in answered])
        return [self._low(ranking) for ranking in rankings]

    def record(self) -> dict[str, Any]:
        """Return what a judge said, for the metrics of run.json, and print it."""
        if self._judge is None:
            return {}
        words = f"stage {self._stage.name}: {self._judge.in_words()}"
        wide_console().print(words, markup=False, highlight=False)
        return {"judge": self._judge.record()}

    def _low(self, ranking: Ranking) -> str:
        (score,) = ranking.scores
        if score is None:
            return "not_judged"
        assert self._stage.at_least is not None, "a score has a bound"
        return "" if score >= self._stage.at_least else "low_score"


def _wrong(check: Verifier, question: Question, answer: str) -> str:
    right = check.judge_row(answer, question.expected, question.place)
    return "" if right else "no_right_answer"


def _worse(comparison: Comparison) -> str:
    """Return why an answer is rejected that was compared with the row's own, which stood second."""
    if comparison.better is None and comparison.reason != "tie":
        return "not_judged"
    return "judged_worse" if comparison.better == 1 else ""


def _against_row(question: Question, answer: str) -> JudgedQuestion:
    """Return the comparison of an answer with the row's own."""
    *before, last = _turns(question)
    return JudgedQuestion(
        key=question.place, messages=tuple(before), answers=(answer, str(last["content"]))
    )


def _with_reference(question: Question, answer: str) -> JudgedQuestion:
    """Return an answer to be scored, beside the row's own."""
    *before, last = _turns(question)
    return JudgedQuestion(
        key=question.place,
        messages=tuple(before),
        answers=(answer,),
        reference=str(last["content"]),
    )


def _turns(question: Question) -> list[dict[str, Any]]:
    assert question.conversation is not None, "only a row that was read is asked"
    return [
        message_dict(message, "reasoning_content") for message in question.conversation.messages
    ]
