"""Rows that are to get a trace, and how a model is asked about them."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from dualign.data.conversation import Conversation
from dualign.data.questions import Question, all_here, read_questions
from dualign.data.rows.traces import without_flags
from dualign.data.text.trace_form import message_dict
from dualign.data.tool_calls import calls_text, final_calls
from dualign.errors import DualignError
from dualign.generation.preflight import issues as endpoint_issues
from dualign.judges.preflight import issues as judge_issues
from dualign.sft.config import TracesStage
from dualign.tasks.base import Problem

HINT = (
    "The answer is known to be:\n{answer}\n\n"
    "Find the way from the question to this answer. Reason from the question alone, as if nobody had "
    "told you the answer, and don't mention that it was given."
)
"""What `answer_first` adds to the question."""


def trace_questions(
    stage: TracesStage, *, seed: int
) -> tuple[list[Question], tuple[Mapping[str, Any], ...]]:
    """Return the rows of all sources, and the sources for run.json; raises as `read_questions`.

    A row that has a trace isn't asked.
    """
    return read_questions(
        stage.data,
        seed=seed,
        check=stage.check,
        expected=stage.expected,
        skip=partial(_not_asked, stage),
        tools=True,
    )


def _not_asked(stage: TracesStage, conversation: Conversation) -> str:
    if any(message.thinking for message in conversation.messages):
        return "has_trace"
    # The whole answer would become the trace, and a call would be learnt as thinking.
    return "tools" if stage.trace == "answer" and final_calls(conversation) else ""


def as_problem(stage: TracesStage, question: Question) -> Problem:
    """Return a question as the model is asked: the row's turns and tools, the hint, the instruction."""
    assert question.conversation is not None, "only a row that was read is asked"
    *before, answer = without_flags(question.conversation.messages, stage.mode)
    turns = [message_dict(message, "reasoning_content") for message in before]
    known = "\n".join(filter(None, (answer.content, calls_text(answer))))
    hint = HINT.format(answer=known) if stage.answer_first else ""
    asking = max(i for i, turn in enumerate(turns) if turn["role"] == "user")
    parts = (turns[asking]["content"], hint, stage.instruction)
    turns[asking]["content"] = "\n\n".join(part for part in parts if part)
    return Problem(
        id=question.place,
        messages=tuple(turns),
        expected=question.expected,
        extra={},
        tools=question.conversation.tools,
    )


def issues(stage: TracesStage) -> list[tuple[str, str]]:
    """Return why answers can't be had or checked, as (key, message): before anything is asked."""
    reasons = endpoint_issues(stage) + judge_issues(stage)
    try:
        if stage.check is not None:
            stage.check.require()
    except DualignError as error:
        return [*reasons, ("verifier", str(error))]
    if not all_here(stage.data):
        return reasons
    try:
        trace_questions(stage, seed=0)
    except DualignError as error:
        reasons.append(("data", str(error)))
    return reasons
