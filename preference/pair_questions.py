"""What a pairs stage asks: problems of task files, and rows of sources, with what checks the answers."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from dualign.data.conversation import Mode
from dualign.data.questions import Question, all_here
from dualign.data.questions import read_questions as read_rows
from dualign.data.rows.traces import without_flags
from dualign.data.text.trace_form import message_dict
from dualign.errors import DualignError, EvaluationError
from dualign.evaluation.preflight import issues as answer_issues
from dualign.generation.thinking import Reply
from dualign.preference.pairs_config import AskedRows, PairsStage
from dualign.switch import Switch
from dualign.tasks.base import Problem, Task
from dualign.tasks.table import load_questions, load_reference, source_of
from dualign.verifiers.base import Verdict, Verifier


@dataclass(frozen=True, kw_only=True, slots=True)
class PairQuestion:
    """A question in one mode, which gets its pairs."""

    source: str
    """the name of the task, or of the source"""
    origin: Literal["task", "source"]
    """what `source` names"""
    id: str
    place: str
    """where it stands, for messages"""
    mode: Mode
    messages: tuple[Mapping[str, Any], ...]
    switch: Switch | None = None
    """what switches the modes, if the task says so"""
    check: Verifier | None = None
    """what tells right answers from wrong ones"""
    expected: Any = None
    """as `check` reads it"""
    reference: str = ""
    """an answer that is known to be good, or what the verifier compares with"""
    row_answer: Reply | None = None
    """the answer that stands in the row, if it is the chosen one"""

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
        return self.check.judge_row(answer, self.expected, self.place)


@dataclass(kw_only=True, slots=True)
class PairQuestions:
    """Everything that is asked, and what isn't."""

    items: list[PairQuestion] = field(default_factory=list)
    passed: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    """for each (source, mode) why questions aren't asked"""
    sources: tuple[Mapping[str, Any], ...] = ()
    """for run.json"""


def read_questions(stage: PairsStage, *, seed: int) -> PairQuestions:
    """Return the questions of all tasks and sources, each in its modes.

    Raises:
        EvaluationError: a task can't be read, or answers can't be checked here.
        DataError: a source or a row can't be read (unless conflicts: drop).
    """
    questions = PairQuestions()
    tasks = load_questions(stage.tasks, limit=stage.rows, seed=seed, checked=stage.checks_tasks)
    for task, problems in tasks:
        if reason := _unaskable(task, problems):
            raise EvaluationError(reason)
    questions.items += [
        _of_task(stage, task, problem, mode)
        for task, problems in tasks
        for mode in stage.modes
        for problem in problems
    ]
    if stage.data is None:
        return questions
    check = stage.data.check
    rows, questions.sources = read_rows(
        stage.data, seed=seed, check=check, expected=stage.data.expected
    )
    for row in rows:
        for mode, passed in _modes(stage, row):
            if passed:
                questions.passed.setdefault((row.source, mode), Counter())[passed] += 1
            else:
                questions.items.append(_of_row(stage, row, mode, check))
    return questions


def issues(stage: PairsStage) -> list[tuple[str, str]]:
    """Return why answers can't be had or checked, as (key, message): before anything is asked."""
    reasons = answer_issues(stage)
    reasons += [("tasks", message) for message in _unaskable_tasks(stage.tasks)]
    if stage.data is None:
        return reasons
    return [*reasons, *(("data", message) for message in _row_problems(stage.data))]


def _unaskable_tasks(references: Sequence[str]) -> Iterator[str]:
    for reference in references:
        if source_of(reference) is None:
            continue
        with suppress(DualignError):  # answer_issues has said it
            for task in load_reference(reference):
                if message := _unaskable(task, task.load_problems()):
                    yield message


def _unaskable(task: Task, problems: Sequence[Problem]) -> str:
    """Return why problems can't be asked here, in words; "" if they can."""
    if any(problem.sizing for problem in problems):
        return (
            f"task {task.name}: its problems have a length in tokens, which evaluations, sweeps, "
            "experiments and retain set; pairs are built from other tasks"
        )
    if any(problem.tools for problem in problems):
        return (
            f"task {task.name}: its problems offer functions, which rows of pairs would lack; pairs are "
            "built from other tasks"
        )
    if any(problem.choices for problem in problems):
        return (
            f"task {task.name}: its texts are scored, no answer is written; pairs are built from tasks "
            "that ask for answers"
        )
    return ""


def _row_problems(data: AskedRows) -> Iterator[str]:
    try:
        if data.check is not None:
            data.check.require()
        if all_here(data):
            read_rows(data, seed=0, check=data.check, expected=data.expected)
    except DualignError as error:
        yield str(error)


def _of_task(stage: PairsStage, task: Task, problem: Problem, mode: Mode) -> PairQuestion:
    check = task.check if stage.checks_tasks else None
    return PairQuestion(
        source=task.name,
        origin="task",
        id=problem.id,
        place=f"{task.rows}:{problem.line}",
        mode=mode,
        messages=problem.messages,
        switch=task.switch,
        check=check,
        expected=None if check is None else check.read(problem.expected),
        reference=_in_words(problem.expected),
    )


def _in_words(expected: Any) -> str:
    """Return what a task's verifier compares with, as a model reads it; "" if it needs nothing."""
    if expected is None or isinstance(expected, str):
        return expected or ""
    return json.dumps(expected, ensure_ascii=False)


def _modes(stage: PairsStage, row: Question) -> Iterator[tuple[str, str]]:
    """Yield the modes in which a row is asked, with the reason if it isn't."""
    if stage.chosen is None:
        yield from ((mode, row.passed) for mode in stage.modes)
    elif row.passed or row.mode in stage.modes:
        yield row.mode, row.passed
    else:
        yield row.mode, "other_mode"


def _of_row(stage: PairsStage, row: Question, mode: str, check: Verifier | None) -> PairQuestion:
    assert row.conversation is not None, "only a row that was read is asked"
    mode = cast(Mode, mode)  # a row that was read has one
    *before, answer = without_flags(row.conversation.messages, mode)
    if mode == "no_think":  # earlier answers of such a pair have no trace either
        before = [replace(message, thinking=None) for message in before]
    reply = Reply(
        thinking=answer.thinking,
        answer=answer.content,
        closed=mode == "think",
        leaked=False,
        empty=False,
        cut_in_think=False,
    )
    return PairQuestion(
        source=row.source,
        origin="source",
        id=row.id,
        place=row.place,
        mode=mode,
        messages=tuple(message_dict(message, "reasoning_content") for message in before),
        check=check,
        expected=row.expected,
        reference=answer.content,
        row_answer=None if stage.chosen is None else reply,
    )
