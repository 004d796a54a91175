"""The shapes in which people keep conversations, in one table: SHAPES.

A shape says which columns its rows fill and how they are parsed. Detection over a whole source
(shape_check.py), parsing, messages and the table of docs/data.md all follow SHAPES, so a new shape
is one entry and its parse function.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dualign.data.conversation import Message, Role
from dualign.data.faults import RowFault
from dualign.data.rows.contents import text_of
from dualign.data.rows.messages import ROLES, as_messages, as_turn
from dualign.errors import excerpt

Row = Mapping[str, Any]
Part = tuple[Message, ...]
Parts = tuple[Part, ...]
"""(messages,) of a conversation, (prompt, chosen, rejected) of a pair, (prompt, answer) of a rated answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowShape:
    """A row has the first shape of SHAPES all of whose `columns` it fills and none of whose
    `excludes`.

    A key with the value None counts as absent: tables fill such keys in. `verbatim`: the row is
    plain text that bypasses the template.
    """

    name: str
    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()
    """other columns that `parse` reads"""
    excludes: tuple[str, ...] = ()
    parse: Callable[[Row], Parts]
    is_pair: bool = False
    verbatim: bool = False
    hint: str = ""
    """where the rest of the row may be, for messages"""

    def fits(self, row: Row) -> bool:
        """Return whether the row fills the columns of the shape."""
        return _has(row, *self.columns) and not any(_has(row, name) for name in self.excludes)


def shapes_of(*, pairs: bool) -> tuple[RowShape, ...]:
    """Return the shapes of preference pairs, or those of conversations."""
    return tuple(shape for shape in SHAPES if shape.is_pair == pairs)


def shape_of(row: Row, *, pairs: bool) -> RowShape | None:
    """Return the shape of a row; None if it has no known one."""
    return next((shape for shape in SHAPES if shape.is_pair == pairs and shape.fits(row)), None)


def expected_shapes(*, pairs: bool) -> str:
    """Return the names of all shapes, for messages."""
    return "; ".join(shape.name + shape.hint for shape in shapes_of(pairs=pairs))


_HISTORY: tuple[Role, Role] = ("user", "assistant")
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_TRACES = ("thinking", "reasoning_content")
"""Columns with the trace of a row's only answer."""
_QUESTION = ("instruction", "input", "history")
"""Alpaca's columns of a question."""
PROMPTS = ("prompt", "conversations", "question", "messages")
"""Columns with the prompt of a pair; the first that a row fills counts."""


def _messages(row: Row) -> Parts:
    return (_with_system(row, as_messages(row["messages"])),)


def _sharegpt(row: Row) -> Parts:
    return (_with_system(row, as_messages(row["conversations"])),)


def _prompt_completion(row: Row) -> Parts:
    answer = _with_trace(row, as_turn(row["completion"], "assistant"))
    return (_with_system(row, [*_history(row), *as_turn(row["prompt"], "user"), *answer]),)


def _alpaca(row: Row) -> Parts:
    answer = _with_trace(row, [Message(role="assistant", content=text_of(row["output"]))])
    return (_with_system(row, [*_instruction(row), *answer]),)


def _instruction(row: Row) -> list[Message]:
    """Parse Alpaca's question, with the turns before it."""
    question = "\n\n".join(text_of(row[key]) for key in ("instruction", "input") if row.get(key))
    return [*_history(row), Message(role="user", content=question)]


def _history(row: Row) -> list[Message]:
    """Parse the turns before a row's question: pairs of texts, or messages."""
    history = row.get("history")
    if not history:
        return []
    pairs = history if isinstance(history, Sequence) else ()
    if isinstance(history, str) or (pairs and isinstance(pairs[0], Mapping)):
        return as_messages(history)
    if not pairs or not all(map(_is_pair, pairs)):
        raise RowFault(
            "unknown_shape", f"history {excerpt(history)}: expected [question, answer] pairs"
        )
    return [
        Message(role=role, content=text_of(text))
        for pair in pairs
        for role, text in zip(_HISTORY, pair, strict=True)
    ]


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, Sequence) and not isinstance(value, str) and len(value) == len(_HISTORY)
    )


def _with_trace(row: Row, answer: list[Message]) -> list[Message]:
    """Return the answer with the trace that the row has in a column of its own."""
    trace = next((row[name] for name in _TRACES if row.get(name)), None)
    if trace is None or not answer or answer[-1].role != "assistant":
        return answer
    if not isinstance(trace, str):
        raise RowFault("bad_content", f"a trace {excerpt(trace)}: expected text")
    if answer[-1].thinking:
        raise RowFault("double_think", "a trace in the answer and another in a column of its own")
    return [*answer[:-1], replace(answer[-1], thinking=trace)]


PLACE, ENDS, FAULT = "document_place", "document_ends", "document_fault"
"""Columns of a row that was cut from a file: where it is from, whether the document ends with it, and
the code and words of what is wrong with the file.
"""


def _plain_text(row: Row) -> Parts:
    is_text = isinstance(row["text"], str) and (row["text"].strip() or row.get(PLACE) is not None)
    if not is_text:
        raise RowFault("empty_row", f"text is {excerpt(row['text'])}: expected some text")
    return ((Message(role="assistant", content=row["text"]),),)


def _pair(row: Row) -> Parts:
    """Parse a preference row. The turns that chosen and rejected share belong to the prompt.

    `prompt` may be a string that `chosen` repeats as its first user message, as UltraFeedback and
    SmolTalk2 have it. Without one, strings are read as transcripts (`Human: ... Assistant: ...`).
    """
    explicit = _explicit_prompt(row)
    parse = as_turn if explicit else _as_transcript
    chosen, rejected = (parse(row[key], "assistant") for key in ("chosen", "rejected"))
    if explicit and explicit[-1].role == "assistant" and explicit[-1] in (chosen[-1], rejected[-1]):
        explicit = explicit[:-1]  # the conversation with one of the answers
    shared, chosen, rejected = _split_shared(chosen, rejected)
    prompt = _join_prompt(explicit, shared)
    return _with_system(row, prompt), tuple(chosen), tuple(rejected)


def _messages_rejected(row: Row) -> Parts:
    """Parse a conversation whose last turn is the chosen answer, beside the rejected one."""
    chosen, rejected = as_messages(row["messages"]), as_turn(row["rejected"], "assistant")
    if len(rejected) == 1:
        rejected = [*chosen[:-1], *rejected]
    prompt, chosen, rejected = _split_shared(chosen, rejected)
    return _with_system(row, prompt), tuple(chosen), tuple(rejected)


def _split_shared(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Return the turns that both begin with, and the rest of each: one turn or more."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    return chosen[:shared], chosen[shared:], rejected[shared:]


def rated_parts(row: Row, shape: RowShape) -> Parts:
    """Return the prompt and the answer of a conversation: its last turn, or all turns of `completion`."""
    (messages,) = shape.parse(row)
    own = "completion" in shape.columns
    turns = len(as_turn(row["completion"], "assistant")) if own else 1
    return messages[:-turns], messages[-turns:]


SHAPES: tuple[RowShape, ...] = (
    RowShape(name="messages", columns=("messages",), parse=_messages),
    RowShape(name="conversations (ShareGPT)", columns=("conversations",), parse=_sharegpt),
    RowShape(
        name="prompt + completion",
        columns=("prompt", "completion"),
        optional=("history", *_TRACES),
        parse=_prompt_completion,
    ),
    RowShape(
        name="instruction + output (Alpaca)",
        columns=("instruction", "output"),
        optional=("input", "history", *_TRACES),
        parse=_alpaca,
    ),
    RowShape(
        name="text",
        columns=("text",),
        optional=(PLACE, ENDS, FAULT),
        # Half of another shape isn't plain text, and neither is one message of a conversation.
        excludes=("messages", "conversations", "prompt", "instruction", "role"),
        parse=_plain_text,
        verbatim=True,
    ),
    RowShape(
        name="chosen + rejected",
        columns=("chosen", "rejected"),
        optional=(*PROMPTS, *_QUESTION),
        parse=_pair,
        is_pair=True,
        hint=", with a prompt in a column of its own or at the head of both",
    ),
    RowShape(
        name="messages + rejected",
        columns=("messages", "rejected"),
        excludes=("chosen",),
        parse=_messages_rejected,
        is_pair=True,
    ),
)


def _explicit_prompt(row: Row) -> list[Message]:
    """Return the prompt of a pair from columns of its own."""
    name = next((name for name in PROMPTS if _has(row, name)), None)
    if name is None:
        return _instruction(row) if _has(row, "instruction") else []
    parse = as_messages if name in ("conversations", "messages") else _as_question
    return [*_history(row), *parse(row[name])]


def _as_question(value: Any) -> list[Message]:
    return as_turn(value, "user")


def _as_transcript(value: Any, role: Role) -> list[Message]:
    """Parse HH-RLHF's strings: turns that begin with `Human:` or `Assistant:` after an empty line."""
    parts = _SPEAKER.split(f"\n\n{value.strip()}") if isinstance(value, str) else []
    if len(parts) < 3 or parts[0].strip():
        return as_turn(value, role)
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [Message(role=ROLES[speaker.lower()], content=text.strip()) for speaker, text in turns]


def _with_system(row: Row, messages: list[Message]) -> Part:
    system = text_of(row["system"]) if row.get("system") else ""
    if not system:
        return tuple(messages)
    first = messages[0].content.strip() if messages and messages[0].role == "system" else None
    if first == system.strip():
        return tuple(messages)
    if first:
        what = f"the column system ({excerpt(system)}) and the first message differ"
        raise RowFault("bad_content", f"{what}: expected one system text")
    if first == "":
        messages = messages[1:]
    return (Message(role="system", content=system), *messages)


def _join_prompt(explicit: list[Message], shared: list[Message]) -> list[Message]:
    """Join the prompt's own column and the shared turns, without repeating turns that are in both."""
    if not shared or not explicit:
        return explicit or shared
    spoken = [message for message in shared if message.role != "system"]
    if explicit in (shared, spoken) or (len(explicit) == 1 and explicit[0] in shared):
        return shared
    return [*explicit, *shared]


def _has(row: Row, *keys: str) -> bool:
    return all(row.get(key) is not None for key in keys)
