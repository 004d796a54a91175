"""Rows that are to get a trace: sources -> questions, with what a right answer has to be.

    {"question": "3 + 4?", "answer": "7"}  ->  Question(conversation=..., expected=7)

They are read by the parser of training, so every shape and mapping works. Rows that can't be asked
stay as they are, with the reason; rows that can't be read are refused or counted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dualign.data.config import DataConfig, SourceConfig
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
from dualign.data.rows.traces import without_flags
from dualign.data.text.trace_form import message_dict
from dualign.errors import DataError, DualignError, EvaluationError
from dualign.generation.preflight import issues as endpoint_issues
from dualign.rundir import RUN_JSON
from dualign.sft.config import TracesStage
from dualign.tasks import Problem, fill_answer

HINT = (
    "The answer is known to be:\n{answer}\n\n"
    "Find the way from the question to this answer. Reason from the question alone, as if nobody had "
    "told you the answer, and don't mention that it was given."
)
"""What `answer_first` adds to the question."""


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

    @property
    def place(self) -> str:
        """The row's source and number, for messages."""
        return f"{self.source}, row {self.row}"


def read_questions(
    stage: TracesStage, *, seed: int
) -> tuple[list[Question], tuple[Mapping[str, Any], ...]]:
    """Return the rows of all sources, and the sources for run.json.

    Raises:
        DataError: a source can't be read; a row is inconsistent, or its verifier can't read what is
            expected (unless conflicts: drop).
        EvaluationError: the verifier can't work here.
    """
    stage.check.require()
    data = DataConfig(sources=stage.data.sources, conflicts=stage.data.conflicts)
    check_labels([source_label(source) for source in data.sources])
    questions: list[Question] = []
    records = []
    for number, source in enumerate(data.sources):
        rows = sample_rows(source, seed=seed, number=number, base=None)
        reading = read_source(source, rows.table, pairs=False, supervise=data.supervise)
        check_shapes(rows.table, rows.rows, reading.source, data, pairs=False)
        questions += _questions(stage, reading.source, rows)
        record = {"source": source.path, "sha256": rows.sha256, "rows": rows.total}
        records.append(record | reading.record(rows.total))
    return questions, tuple(records)


def as_problem(stage: TracesStage, question: Question) -> Problem:
    """Return the turns of a question as the model is asked: the row's, the hint, the instruction."""
    assert question.conversation is not None, "only a row that was read is asked"
    *before, answer = without_flags(question.conversation.messages, stage.mode)
    turns = [message_dict(message, "reasoning_content") for message in before]
    hint = HINT.format(answer=answer.content) if stage.answer_first else ""
    parts = (turns[-1]["content"], hint, stage.instruction)
    turns[-1]["content"] = "\n\n".join(part for part in parts if part)
    return Problem(id=question.place, messages=tuple(turns), expected=question.expected, extra={})


def issues(stage: TracesStage) -> list[tuple[str, str]]:
    """Return why answers can't be had or checked, as (key, message): before anything is asked."""
    reasons = endpoint_issues(stage)
    try:
        stage.check.require()
    except DualignError as error:
        return [*reasons, ("verifier", str(error))]
    if not _is_here(stage):
        return reasons
    try:
        read_questions(stage, seed=0)
    except DualignError as error:
        reasons.append(("data", str(error)))
    return reasons


def _is_here(stage: TracesStage) -> bool:
    """Return whether all rows are known: on this machine, not drawn by a seed, not of an earlier run."""
    for source in stage.data.sources:
        path = Path(source.path)
        if not (path.exists() or "*" in source.path) or (path.parent / RUN_JSON).is_file():
            return False
        if source.rows is not None or source.weight is not None:
            return False
    return True


def _questions(stage: TracesStage, source: SourceConfig, rows: SampledRows) -> Iterator[Question]:
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
            if stops(error.code, source.on_fault, default=stage.data.conflicts):
                raise
            yield replace(question, mode=error.mode or UNKNOWN_MODE, passed=error.code)
            continue
        assert isinstance(conversation, Conversation), "the parser was asked for no pairs"
        question = replace(question, conversation=conversation, mode=conversation.mode)
        passed = _not_asked(conversation)
        yield replace(question, passed=passed) if passed else _checkable(stage, question, plain)


def _not_asked(conversation: Conversation) -> str:
    """Return why a row can't get a trace; "" if it can."""
    *before, answer = conversation.messages
    if any(message.thinking for message in conversation.messages):
        return "has_trace"
    if conversation.tools or any(
        message.role == "tool" or message.tool_calls for message in conversation.messages
    ):
        return "tools"
    if answer.role != "assistant" or not before or before[-1].role != "user":
        return "no_question"
    return "" if answer.train else "not_trained"


def _checkable(stage: TracesStage, question: Question, row: Mapping[str, Any]) -> Question:
    """Return the question with what a right answer has to be."""
    assert question.conversation is not None, "it was read"
    answer, check = question.conversation.messages[-1].content, stage.check
    expected: Any = answer if check.needs_expected else None
    try:
        if stage.expected is not None:
            where = f"{question.place}: what is expected"
            expected = fill_answer(check, stage.expected, row, where)
        return replace(question, expected=check.read(expected))
    except EvaluationError:
        raise
    except DataError as error:
        if stage.data.conflicts == "drop":
            return replace(question, passed="unreadable_answer")
        hint = "" if stage.expected else "; name the field that holds it: expected: '{solution}'"
        raise DataError(f"{question.place}: {error}{hint}") from None
