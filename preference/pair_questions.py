"""What a pairs stage asks: the problems of task files, with what checks the answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dualign.data.conversation import Mode
from dualign.errors import DataError, EvaluationError
from dualign.preference.pairs_config import PairsStage
from dualign.switch import Switch
from dualign.tasks import Problem, Task, load_questions
from dualign.verifiers.base import Verdict, Verifier


@dataclass(frozen=True, kw_only=True, slots=True)
class PairQuestion:
    """A question that gets its pairs in each of its modes."""

    source: str
    """the task's name"""
    id: str
    place: str
    """file and line, for messages"""
    messages: tuple[Mapping[str, Any], ...]
    modes: tuple[Mode, ...]
    switch: Switch | None = None
    """what switches the modes, if the task says so"""
    check: Verifier | None = None
    """what tells right answers from wrong ones"""
    expected: Any = None
    """as `check` reads it"""

    reference: str = ""
    """an answer that is known to be good, or what the verifier compares with"""

    @property
    def problem(self) -> Problem:
        """The question as a model is asked."""
        return Problem(id=self.id, messages=self.messages, expected=self.expected, extra={})

    def verdict(self, answer: str) -> Verdict | None:
        """Return whether an answer without its thinking is right; None if nothing checks it.

        Raises:
            EvaluationError: the verifier fails; the message names the row.
        """
        if self.check is None:
            return None
        try:
            return self.check.judge(answer, self.expected)
        except DataError as error:
            raise EvaluationError(f"{self.place}: {error}") from None


def read_questions(stage: PairsStage, *, seed: int) -> list[PairQuestion]:
    """Return all questions.

    Raises:
        EvaluationError: a task can't be read, or its answers can't be checked here.
    """
    tasks = load_questions(stage.tasks, limit=stage.rows, seed=seed, checked=stage.checks_answers)
    return [_of_task(stage, task, problem) for task, problems in tasks for problem in problems]


def _of_task(stage: PairsStage, task: Task, problem: Problem) -> PairQuestion:
    check = task.check if stage.checks_answers else None
    return PairQuestion(
        source=task.name,
        id=problem.id,
        place=f"{task.rows}:{problem.line}",
        messages=problem.messages,
        modes=stage.modes,
        switch=task.switch,
        check=check,
        expected=None if check is None else check.read(problem.expected),
        reference=problem.expected if isinstance(problem.expected, str) else "",
    )
