"""Thinking traces and modes: taking the trace out of a turn, and telling the mode of a row.

A row that contradicts itself is refused here, because every later step would train it into the
model without a word.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dualign.data.conversation import MODES, Message, Mode
from dualign.data.faults import RowFault
from dualign.data.modes import CLOSE, FLAGS, OPEN, WHOLE_FLAG
from dualign.errors import excerpt

_FLAG_AND_SPACE = re.compile(WHOLE_FLAG.pattern + r"[ \t]?")


def split_trace(content: str) -> tuple[str | None, str]:
    """(trace, answer) of an assistant's content: `<think>a</think>b` -> ("a", "b"), no block ->
    (None, content).

    An empty block is no trace: it is how some families write "not thinking".
    """
    opened, closed = content.count(OPEN), content.count(CLOSE)
    if not opened and not closed:
        return None, content
    head = content.lstrip()
    if not opened:
        raise RowFault("unopened_think", f"{CLOSE} without {OPEN} in {excerpt(content)}")
    if not head.startswith(OPEN):
        raise RowFault("misplaced_think", f"text before {OPEN} in {excerpt(content)}")
    if not closed:
        raise RowFault("unclosed_think", f"{OPEN} without {CLOSE} in {excerpt(content)}")
    trace, answer = head[len(OPEN) :].split(CLOSE, 1)
    if OPEN in trace:
        raise RowFault("nested_think", f"{OPEN} inside a think block in {excerpt(content)}")
    if OPEN in answer or CLOSE in answer:
        raise RowFault("double_think", f"more than one think block in {excerpt(content)}")
    return trace.strip() or None, answer.lstrip("\n")


def take_trace(message: Message) -> Message:
    """The message with the trace of its content moved into `thinking`; a trace in both places is a
    fault.
    """
    trace, answer = split_trace(message.content)
    given = (message.thinking or "").strip() or None
    if given and (OPEN in given or CLOSE in given):
        raise RowFault("nested_think", f"a think tag inside the trace {excerpt(given)}")
    if trace and given:
        raise RowFault("double_think", "a trace in the content and another in a field of its own")
    if (answer, given or trace) == (message.content, message.thinking):
        return message
    return replace(message, content=answer, thinking=given or trace)


def resolve_mode(
    row: Mapping[str, Any],
    messages: Sequence[Message],
    *,
    source_mode: str,
    enable_thinking: bool | None,
) -> Mode:
    """The mode on which all agree who say one: the row's `mode`, its `enable_thinking`, its source,
    and the flags (whole words) in the system message and in the last user turn.

    If none of them says anything: think if any assistant turn has a trace.
    """
    said: dict[str, Mode] = {}
    if row.get("mode") is not None:
        said["the row's mode"] = _as_mode(row["mode"])
    if enable_thinking is not None:
        said["enable_thinking"] = "think" if enable_thinking else "no_think"
    if source_mode != "row":
        said["the source's mode"] = _as_mode(source_mode)
    for turn in _flagged_turns(messages):
        if flag := _flag(messages[turn]):
            where = "last user" if messages[turn].role == "user" else "system"
            said[f"the flag in the {where} message"] = flag
    if len(set(said.values())) > 1:
        listed = ", ".join(f"{who} says {mode}" for who, mode in said.items())
        raise RowFault("mode_contradiction", f"{listed}: expected one mode")
    if said:
        return next(iter(said.values()))
    # The tag is looked for as well, for rows whose contents are kept as they are.
    answers = [message for message in messages if message.role == "assistant"]
    return "think" if any(one.thinking or OPEN in one.content for one in answers) else "no_think"


def without_flags(messages: Sequence[Message], mode: Mode) -> tuple[Message, ...]:
    """The messages without the flags that decide on another mode than `mode`. A system message that
    held nothing else is left out.
    """
    made = list(messages)
    for turn in _flagged_turns(messages):
        if _flag(messages[turn]) not in (None, mode):
            text = _FLAG_AND_SPACE.sub("", messages[turn].content).strip()
            made[turn] = replace(messages[turn], content=text)
    return tuple(one for one in made if one.role != "system" or one.content)


def check_turns(messages: Sequence[Message], mode: Mode, *, trained: Sequence[int]) -> None:
    """Faults of a mode's turns: a trace where there may be none, none where there must be one, an
    empty answer, an answer that only repeats its trace.
    """
    for turn, message in enumerate(messages):
        if message.role != "assistant":
            continue
        if mode == "no_think" and message.thinking:
            raise RowFault(
                "no_think_with_trace",
                f"message {turn} has a trace ({excerpt(message.thinking)}) but the row is no_think",
                mode,
            )
        if turn not in trained:
            continue
        if mode == "think" and not message.thinking:
            raise RowFault(
                "think_without_trace",
                f"message {turn} ({excerpt(message.content)}) has no trace but the row is think",
                mode,
            )
        if not message.content.strip() and not message.tool_calls:
            raise RowFault("empty_answer", f"message {turn} of the assistant has no answer", mode)
        if message.thinking and message.thinking.strip() == message.content.strip():
            found = f"message {turn} answers with its own trace ({excerpt(message.content)})"
            raise RowFault("trace_is_answer", found, mode)


def _flagged_turns(messages: Sequence[Message]) -> list[int]:
    """The turns whose flags count: the first message if it is the system's, and the last user's.

    Earlier user turns may have switched back and forth. No template here reads flags of users, but
    a model trained on `Hi /think` with an answer at once learns that flags mean nothing.
    """
    turns = [0] if messages and messages[0].role == "system" else []
    users = (turn for turn in range(len(messages) - 1, -1, -1) if messages[turn].role == "user")
    return turns + [turn for turn in [next(users, None)] if turn is not None]


def _flag(message: Message) -> Mode | None:
    """The last flag of a message."""
    if "think" not in message.content:
        return None
    flags = [FLAGS[word] for word in message.content.split() if word in FLAGS]
    return flags[-1] if flags else None


def _as_mode(value: object) -> Mode:
    if value not in MODES:
        raise RowFault("unknown_mode", f"mode {value!r}: expected {' or '.join(MODES)}")
    return value
