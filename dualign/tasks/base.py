"""What every source of tasks gives: tasks, their problems, and the verdict on an answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from dualign.errors import DataError, EvaluationError
from dualign.switch import Switch
from dualign.verifiers.base import Verdict, Verifier

Turn = Mapping[str, Any]


class Sizing(Protocol):
    """How long a problem is to be: known when a model's tokenizer is."""

    @property
    def tokens(self) -> int:
        """Tokens of its prompt, the chat template included, at most."""

    def sized(self, count: Callable[[str], int]) -> "Problem":
        """Return the problem as it is asked.

        Args:
            count: tokens of the prompt with a text as the user's turn.

        Raises:
            EvaluationError: it can't have that length.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Continuation:
    """A text whose log-probability is asked for, in place of an answer."""

    text: str
    messages: tuple[Turn, ...] | None
    """what it goes on from; empty: the start of a document; None: it is a document by itself"""


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnSampling:
    """How an answer is sampled by the rules of its task."""

    max_new_tokens: int
    """limit of an answer; think mode has the stage's, if that is more"""
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    """strings that end an answer, and are no part of it"""
    repeats: int = 1
    """answers that are judged together"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A row to be answered; `extra` holds its other plain fields, for samples.jsonl."""

    id: str
    messages: tuple[Turn, ...]
    expected: Any
    extra: Mapping[str, Any]
    line: int = 0
    tools: tuple[Mapping[str, Any], ...] = ()
    """functions that the model may call, as JSON schemas"""
    begun: str = ""
    """the start of the answer, which the model goes on from"""
    samples: int | None = None
    """answers in modes that sample; None: the stage's"""
    choices: tuple[Continuation, ...] = ()
    """texts that are scored in place of an answer"""
    sampling: OwnSampling | None = None
    """None: the task's limits and the stage's settings"""
    sizing: Sizing | None = None
    """of a problem that isn't as long yet as it will be asked; its turns are the shortest form"""

    @property
    def contexts(self) -> list[tuple[Turn, ...]]:
        """The different messages that are asked: those of the problem, then those of its texts."""
        contexts = [self.messages]
        for choice in self.choices:
            if choice.messages and choice.messages not in contexts:
                contexts.append(choice.messages)
        return contexts

    @property
    def question(self) -> str | list[Turn]:
        """Text of the only turn, or all turns if there are several."""
        if len(self.messages) == 1:
            return str(self.messages[0]["content"])
        return list(self.messages)


class Task(Protocol):
    """What is asked, and what checks the answers. Each source has a frozen class of its own."""

    @property
    def name(self) -> str:
        """Its name in tables and in metrics.json."""

    @property
    def rows(self) -> str:
        """The file of its rows, or what else says where they are from."""

    @property
    def max_new_tokens(self) -> int | None:
        """Limit of an answer in think mode; None: the stage's."""

    @property
    def max_new_tokens_no_think(self) -> int | None:
        """Limit of an answer in no_think mode; None: max_new_tokens, else the stage's."""

    @property
    def switch(self) -> Switch | None:
        """What switches the modes for this task; None: the stage's."""

    @property
    def check(self) -> Verifier:
        """What judges the answers."""

    @property
    def digest(self) -> str | None:
        """Hash of what its problems and verdicts depend on; None: of the files of `rows`."""

    def load_problems(self) -> tuple[Problem, ...]:
        """Return all problems in order.

        Raises:
            EvaluationError: they can't be had, or one can't be read.
        """

    def settings(self) -> dict[str, Any]:
        """Return what its questions and verdicts depend on besides the rows, to be hashed."""

    def without_instruction(self) -> "Task":
        """Return the task with the bare questions: what training rows are compared with."""


@runtime_checkable
class HarnessTask(Protocol):
    """A task of a harness, which has metrics of its own."""

    @property
    def writes(self) -> bool:
        """Whether all of its rows are answered; False where texts are scored in place of answers."""

    @property
    def has_accuracy(self) -> bool:
        """Whether a metric says what share of its rows is right."""

    def harness(self) -> dict[str, Any]:
        """Return which harness, and which versions of it and of the task."""

    def judge_responses(
        self, problem: Problem, responses: Sequence[Sequence[Any]], *, cut: bool = False
    ) -> Verdict:
        """Return the verdict on all that a model said to a problem.

        Args:
            responses: the answers; or for each text its log-probability, and whether it is greedy.
            cut: a trace was cut before its answer.

        Raises:
            EvaluationError: the harness fails; the message names the row.
        """

    def metrics(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return the harness's metrics of samples in one mode: `value`, `stderr` and `ci` by name."""


def judge(task: Task, problem: Problem, answer: str) -> Verdict:
    """Return whether an answer without its thinking is right, by the task's verifier.

    Raises:
        EvaluationError: the verifier fails; the message names the row.
    """
    expected = expected_of(task, problem)
    return task.check.judge_row(answer, expected, f"{task.rows}:{problem.line}")


def expected_of(task: Task, problem: Problem) -> Any:
    """Return what the verifier compares with, in its form.

    Raises:
        EvaluationError: the verifier can't read it.
    """
    try:
        return task.check.read(problem.expected)
    except DataError as error:
        raise EvaluationError(f"{task.rows}:{problem.line}: {error}") from None
