"""Thinking traces and modes: taking the trace out of a turn, and telling the mode of a row.

A row that contradicts itself is refused here, because every later step would train it into the
model without a word.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dualign.data.conversation import MODES, Message, Mode
from dualign.data.faults import Code

OPEN, CLOSE = "<think>", "</think>"
_FLAGS: dict[str, Mode] = {"/think": "think", "/no_think": "no_think"}


class TraceFault(Exception):
    """A fault of a turn or of a mode; whoever knows source and row makes a RowError of it."""

    def __init__(self, code: Code, what: str, mode: Mode | None = None) -> None:
        super().__init__(what)
        self.code: Code = code
        self.mode = mode


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
        raise TraceFault("unopened_think", f"{CLOSE} without {OPEN} in {_short(content)}")
    if not head.startswith(OPEN):
        raise TraceFault("misplaced_think", f"text before {OPEN} in {_short(content)}")
    if not closed:
        raise TraceFault("unclosed_think", f"{OPEN} without {CLOSE} in {_short(content)}")
    trace, answer = head[len(OPEN) :].split(CLOSE, 1)
    if OPEN in trace:
        raise TraceFault("nested_think", f"{OPEN} inside a think block in {_short(content)}")
    if OPEN in answer or CLOSE in answer:
        raise TraceFault("double_think", f"more than one think block in {_short(content)}")
    return trace.strip() or None, answer.lstrip("\n")


def take_trace(message: Message) -> Message:
    """The message with the trace of its content moved into `thinking`; a trace in both places is a
    fault.
    """
    trace, answer = split_trace(message.content)
    given = (message.thinking or "").strip() or None
    if given and (OPEN in given or CLOSE in given):
        raise TraceFault("nested_think", f"a think tag inside the trace {_short(given)}")
    if trace and given:
        raise TraceFault("double_think", "a trace in the content and another in a field of its own")
    return replace(message, content=answer, thinking=given or trace)


def resolve_mode(
    row: Mapping[str, Any],
    messages: Sequence[Message],
    *,
    source_mode: str,
    enable_thinking: bool | None,
) -> Mode:
    """The mode that the row's field, its `enable_thinking`, its source and its system flags agree
    on.

    If none of them says anything: think if any assistant turn has a trace.
    """
    said: dict[str, Mode] = {}
    if row.get("mode") is not None:
        said["the row's mode"] = _as_mode(row["mode"])
    if enable_thinking is not None:
        said["enable_thinking"] = "think" if enable_thinking else "no_think"
    if source_mode != "row":
        said["the source's mode"] = _as_mode(source_mode)
    if flag := _flag(messages):
        said["the flag in the system message"] = flag
    if len(set(said.values())) > 1:
        listed = ", ".join(f"{who} says {mode}" for who, mode in said.items())
        raise TraceFault("mode_contradiction", f"{listed}: expected one mode")
    if said:
        return next(iter(said.values()))
    # The tag is looked for as well, for rows whose contents are kept as they are.
    answers = [message for message in messages if message.role == "assistant"]
    return "think" if any(one.thinking or OPEN in one.content for one in answers) else "no_think"


def check_turns(messages: Sequence[Message], mode: Mode, *, trained: Sequence[int]) -> None:
    """Faults of a mode's turns: a trace where there may be none, none where there must be one, an
    empty answer.
    """
    for turn, message in enumerate(messages):
        if message.role != "assistant":
            continue
        if mode == "no_think" and message.thinking:
            raise TraceFault(
                "no_think_with_trace",
                f"message {turn} has a trace ({_short(message.thinking)}) but the row is no_think",
                mode,
            )
        if turn not in trained:
            continue
        if mode == "think" and not message.thinking:
            raise TraceFault(
                "think_without_trace",
                f"message {turn} ({_short(message.content)}) has no trace but the row is think",
                mode,
            )
        if not message.content.strip() and not message.tool_calls:
            raise TraceFault("empty_answer", f"message {turn} of the assistant has no answer", mode)


def _flag(messages: Sequence[Message]) -> Mode | None:
    """The last whole-word flag of the first message, if that is a system message."""
    if not messages or messages[0].role != "system":
        return None
    flags = [_FLAGS[word] for word in messages[0].content.split() if word in _FLAGS]
    return flags[-1] if flags else None


def _as_mode(value: object) -> Mode:
    if value not in MODES:
        raise TraceFault("unknown_mode", f"mode {value!r}: expected {' or '.join(MODES)}")
    return value


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:40]} ... {text[-30:]}")
