"""Rows that a model is asked: sources -> questions, with what a right answer has to be.

    {"question": "3 + 4?", "answer": "7"}  ->  Question(conversation=..., expected=7)

They are read by the parser of training, so every shape and mapping works. Rows that can't be asked
stay as they are, with the reason; rows that can't be read are refused or counted.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dualign.data.config import DataConfig, QuestionData, SourceConfig
from dualign.data.conversation import UNKNOWN_MODE, Conversation
from dualign.data.faults import RowError
from dualign.data.mix.selection import check_labels
from dualign.data.policies import stops
from dualign.data.rows.loading import SampledRows, sample_rows
from dualign.data.rows.padding import without_padding
from dualign.data.rows.parser import RowParser
from dualign.data.rows.reading import read_source
from dualign.data.rows.shape_check import check_shapes
from dualign.data.rows.sources import source_label
from dualign.data.rows.text_rules import NO_RULES
from dualign.data.tool_calls import final_calls, uses_tools
from dualign.errors import DataError, EvaluationError
from dualign.rundir import RUN_JSON
from dualign.tasks.base import Problem
from dualign.tasks.files import fill_answer
from dualign.verifiers.base import Verifier
from dualign.verifiers.call_trees import Call


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A row of a source, as far as it could be read."""

    source: str
    row: int
    """its index in the source"""
    id: str
    """the row's own, else its index"""
    conversation: Conversation | None
    """None for a row that was refused"""
    mode: str
    passed: str = ""
    """why it isn't asked; its fault, if it was refused"""
    expected: Any = None
    """as the verifier reads it"""
    calls: tuple[Call, ...] = ()
    """with which the row ends: what an answer has to call, whatever the verifier"""

    @property
    def place(self) -> str:
        """The row's source and number, for messages."""
        return f"{self.source}, row {self.row}"


def read_questions(
    data: QuestionData,
    *,
    seed: int,
    check: Verifier | None,
    expected: str | None,
    skip: Callable[[Conversation], str] = lambda conversation: "",
    tools: bool = False,
) -> tuple[list[Question], tuple[Mapping[str, Any], ...]]:
    """Return the rows of all sources, and the sources for run.json.

    Args:
        check: what will check answers; None: nothing does, and nothing is expected.
        expected: what it compares with, with fields of the row in braces; None: the row's answer.
        skip: returns why a row isn't asked; "" if it is.
        tools: ask rows with tools, and those that end in a call.

    Raises:
        DataError: a source can't be read; a row is inconsistent, or its verifier can't read what is
            expected (unless conflicts: drop).
        EvaluationError: the verifier can't work here.
    """
    if check is not None:
        check.require()
    config = DataConfig(sources=data.sources, conflicts=data.conflicts)
    check_labels([source_label(source) for source in config.sources])
    questions: list[Question] = []
    records = []
    for number, source in enumerate(config.sources):
        rows = sample_rows(source, seed=seed, number=number, base=None)
        reading = read_source(source, rows.table, pairs=False, supervise=config.supervise)
        check_shapes(rows.table, rows.rows, reading.source, config, pairs=False)
        for question, row in _questions(data, reading.source, rows, tools=tools):
            if question.conversation is not None and (why := skip(question.conversation)):
                question = replace(question, passed=why)
            if check is None or question.passed or question.calls:
                questions.append(question)
            else:
                questions.append(_checkable(data, question, row, check, expected))
        record = {"source": source.path, "sha256": rows.sha256, "rows": rows.total}
        records.append(record | reading.record(rows.total))
    return questions, tuple(records)


def all_here(data: QuestionData) -> bool:
    """Return whether all rows are known: on this machine, not drawn by a seed, not of an earlier run."""
    for source in data.sources:
        path = Path(source.path)
        if not (path.exists() or "*" in source.path) or (path.parent / RUN_JSON).is_file():
            return False
        if source.rows is not None or source.weight is not None:
            return False
    return True


def rows_as_problems(data: QuestionData) -> list[Problem]:
    """Return a problem for each row, as long as the row: for what asking them costs."""
    return [
        Problem(id="", messages=({"content": str(row)},), expected=None, extra={})
        for number, source in enumerate(data.sources)
        for row in sample_rows(source, seed=0, number=number, base=None).table
    ]


def _questions(
    data: QuestionData, source: SourceConfig, rows: SampledRows, *, tools: bool
) -> Iterator[tuple[Question, Mapping[str, Any]]]:
    """Yield the questions of a source with their rows."""
    parser = RowParser(
        source=source,
        supervise="assistant",
        row_type="conversation",
        rules=NO_RULES,
        structs=rows.structs,
    )
    for raw, row in zip(rows.stored, rows.rows.tolist(), strict=True):
        plain = without_padding(raw, rows.structs)
        question = Question(
            source=source_label(source),
            row=row,
            id=str(row if plain.get("id") in (None, "") else plain["id"]),
            conversation=None,
            mode=UNKNOWN_MODE,
        )
        try:
            conversation = parser(raw, row)
        except RowError as error:
            if stops(error.code, source.on_fault, default=data.conflicts):
                raise
            yield replace(question, mode=error.mode or UNKNOWN_MODE, passed=error.code), plain
            continue
        assert isinstance(conversation, Conversation), "the parser was asked for no pairs"
        question = replace(question, conversation=conversation, mode=conversation.mode)
        if tools:
            question = replace(question, calls=final_calls(conversation))
        yield replace(question, passed=_not_asked(conversation, tools=tools)), plain


def _not_asked(conversation: Conversation, *, tools: bool) -> str:
    """Return why a row can't be asked; "" if it can."""
    *before, answer = conversation.messages
    if not tools and uses_tools(conversation):
        return "tools"
    if answer.role != "assistant" or not before or before[-1].role not in ("user", "tool"):
        return "no_question"
    return "" if answer.train else "not_trained"


def _checkable(
    data: QuestionData,
    question: Question,
    row: Mapping[str, Any],
    check: Verifier,
    template: str | None,
) -> Question:
    """Return the question with what a right answer has to be."""
    assert question.conversation is not None, "it was read"
    answer = question.conversation.messages[-1].content
    expected: Any = (check.expected_in(row) or answer) if check.needs_expected else None
    try:
        if template is not None:
            where = f"{question.place}: what is expected"
            expected = fill_answer(check, template, row, where)
        return replace(question, expected=check.read(expected))
    except EvaluationError:
        raise
    except DataError as error:
        if data.conflicts == "drop":
            return replace(question, passed="unreadable_answer")
        hint = "" if template else "; name the field that holds it: expected: '{solution}'"
        raise DataError(f"{question.place}: {error}{hint}") from None
