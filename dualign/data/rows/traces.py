"""Thinking traces and modes: move the trace out of a turn's content, resolve the mode of a row.

Contradictory rows are rejected here: no later step would notice.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dualign.data.conversation import MODES, Message, Mode
from dualign.data.faults import RowFault
from dualign.data.rows.foreign_traces import foreign_trace
from dualign.data.think_tags import CLOSE, FLAGS, OPEN, WHOLE_FLAG
from dualign.errors import excerpt

_FLAG_AND_SPACE = re.compile(WHOLE_FLAG.pattern + r"[ \t]?")


def split_trace(content: str) -> tuple[str | None, str]:
    """Split an assistant's content into (trace, answer).

    `<think>a</think>b` -> ("a", "b"); without a block (None, content). An empty block is no trace:
    it is how some families write "not thinking".

    Raises:
        RowFault: anything but one closed block at the head.
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
    """Return the message with the trace of its content moved into `thinking`.

    Raises:
        RowFault: a trace in both, or one in the tags of another family.
    """
    if block := foreign_trace(message.content):
        what = f"the answer begins with {block.tag}, the trace of another family: "
        raise RowFault("foreign_trace", f"{what}{excerpt(message.content)}")
    trace, answer = split_trace(message.content)
    thinking = (message.thinking or "").strip() or None
    if thinking and (OPEN in thinking or CLOSE in thinking):
        raise RowFault("nested_think", f"a think tag inside the trace {excerpt(thinking)}")
    if trace and thinking:
        raise RowFault("double_think", "a trace in the content and another in a field of its own")
    if (answer, thinking or trace) == (message.content, message.thinking):
        return message
    return replace(message, content=answer, thinking=thinking or trace)


def resolve_mode(
    row: Mapping[str, Any],
    messages: Sequence[Message],
    *,
    source_mode: str,
    enable_thinking: bool | None,
    declared: Mapping[str, Mode] | None = None,
) -> Mode:
    """Return the mode on which all declarations agree: the row's `mode`, its `enable_thinking`, its
    source, the flags (whole words) in the system message and in the last user turn, and what the
    template's switch finds in the row (`declared`).

    Without any declaration: think if an assistant turn has a trace.

    Raises:
        RowFault: declarations that contradict each other, or no known mode.
    """
    declared = dict(declared or {})
    if row.get("mode") is not None:
        declared["the row's mode"] = _as_mode(row["mode"])
    if enable_thinking is not None:
        declared["enable_thinking"] = "think" if enable_thinking else "no_think"
    if source_mode != "row":
        declared["the source's mode"] = _as_mode(source_mode)
    for turn in _flagged_turns(messages):
        if flag := _flag(messages[turn]):
            where = "last user" if messages[turn].role == "user" else "system"
            declared[f"the flag in the {where} message"] = flag
    if len(set(declared.values())) > 1:
        listed = ", ".join(f"{who} says {mode}" for who, mode in declared.items())
        raise RowFault("mode_contradiction", f"{listed}: expected one mode")
    if declared:
        return next(iter(declared.values()))
    # The tag counts as well, for rows whose contents are kept as they are.
    answers = [message for message in messages if message.role == "assistant"]
    has_trace = any(message.thinking or OPEN in message.content for message in answers)
    return "think" if has_trace else "no_think"


def without_flags(messages: Sequence[Message], mode: Mode) -> tuple[Message, ...]:
    """Return the messages without the flags that choose another mode than `mode`. A system message
    that held nothing else is left out.
    """
    changed = list(messages)
    for turn in _flagged_turns(messages):
        if _flag(messages[turn]) not in (None, mode):
            text = _FLAG_AND_SPACE.sub("", messages[turn].content).strip()
            changed[turn] = replace(messages[turn], content=text)
    return tuple(message for message in changed if message.role != "system" or message.content)


def check_turns(messages: Sequence[Message], mode: Mode, *, trained: Sequence[int]) -> None:
    """Check the turns of a mode.

    Raises:
        RowFault: a trace in a no_think row, a trained turn of a think row without a trace, an empty
        answer, an answer that only repeats its trace.
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
            what = f"message {turn} answers with its own trace ({excerpt(message.content)})"
            raise RowFault("trace_is_answer", what, mode)


def _flagged_turns(messages: Sequence[Message]) -> list[int]:
    """Return the turns whose flags count: the first message if it is the system's, and the last
    user's.

    Earlier user turns may have switched back and forth. No template here reads flags of users, but
    a model trained on `Hi /think` with an answer at once learns that flags mean nothing.
    """
    turns = [0] if messages and messages[0].role == "system" else []
    users = [turn for turn, message in enumerate(messages) if message.role == "user"]
    return turns + users[-1:]


def _flag(message: Message) -> Mode | None:
    """Return the mode of the last flag of a message."""
    if "think" not in message.content:
        return None
    flags = [FLAGS[flag] for flag in WHOLE_FLAG.findall(message.content)]
    return flags[-1] if flags else None


def _as_mode(value: object) -> Mode:
    if value not in MODES:
        raise RowFault("unknown_mode", f"mode {excerpt(value)}: expected {' or '.join(MODES)}")
    return value
