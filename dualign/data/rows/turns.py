"""Checks of a conversation's turns: their order, and calls with their results."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dualign.data.conversation import Message, Mode, Role
from dualign.data.faults import RowFault
from dualign.errors import excerpt, listing

# How calls are written where they are text: Hermes, Llama-3, Mistral, smolagents, ReAct, Python.
_CALL_TEXT = re.compile(
    r"<tool_call>|<function|<\|python_tag\|>|\[TOOL_CALLS\]|<code>|```|<invoke|^Action:|^\s*\[[A-Za-z_][\w ./-]*\(",
    re.MULTILINE,
)

_MEDIUM = (
    r"(?:<\|?(?:image|img|picture|video|audio|vision|sound)(?:_?(?:pad|start|bos|token|soft_token|"
    r"placeholder|here|\d+))*\|?>|<start_of_(?:image|audio|video)>|\[IMG\])"
)
_PLACEHOLDER = re.compile(
    rf"\A\s*{_MEDIUM}|{_MEDIUM}\s*\Z|^[^\S\n]*(?:{_MEDIUM}[^\S\n]*)+$|Picture \d+: ?<img>[^<]*</img>",
    re.IGNORECASE | re.MULTILINE,
)
_ABOUT_CODE = re.compile(
    r"```|</(?:image|picture|video|audio|sound)|\[/IMG|"
    r"\b(?:html5?|svg|xml|jsx|css|bbcode|markup|markdown|tags?|elements?|tokens?|placeholders?|code)\b",
    re.IGNORECASE,
)
"""Words of a text that speaks of such a tag."""


def check_placeholders(messages: Sequence[Message], mode: Mode) -> None:
    """Raise RowFault for a question with the placeholder of an image, a sound or a video: at its head
    or end, or alone on a line, in a text that says nothing of tags or code.
    """
    for turn, message in enumerate(messages):
        text = message.content
        if message.role == "assistant" or ("<" not in text and "[" not in text):
            continue
        if (match := _PLACEHOLDER.search(text)) and not _ABOUT_CODE.search(text):
            what = (
                f"message {turn} of the {message.role} has {match[0].strip()!r} in the place of an image, "
                f"a sound or a video that the model doesn't see: {excerpt(text)}"
            )
            raise RowFault("multimodal", what, mode)


def check_order(messages: Sequence[Message], mode: Mode) -> None:
    """Check the order of turns: system first, then the user, then alternating.

    Raises:
        RowFault: another order, or an empty user turn.
    """
    previous: Role | None = None
    for turn, message in enumerate(messages):
        role = message.role
        if role == previous and role != "tool":
            raise RowFault("same_role_twice", f"message {turn} is the {role}'s again", mode)
        if role == "system" and turn:
            raise RowFault("late_system", f"message {turn} is a system message: not first", mode)
        if role == "assistant" and previous in (None, "system"):
            raise RowFault("assistant_first", "the assistant speaks before any user", mode)
        if role == "user" and not message.content.strip():
            raise RowFault("empty_user", f"message {turn} of the user is empty", mode)
        previous = role


def check_tools(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], mode: Mode
) -> None:
    """Check calls and results.

    Raises:
        RowFault: a result without a call, or a call of a tool that the row doesn't have.
    """
    names = {_name(tool) for tool in tools}
    open_calls = 0.0  # results that may still follow
    calls: Sequence[Mapping[str, Any]] = ()
    for turn, message in enumerate(messages):
        if message.role == "tool":
            is_first = not turn or messages[turn - 1].role != "tool"
            open_calls = (_calls(messages[turn - 1]) if turn and is_first else open_calls) - 1
            calls = messages[turn - 1].tool_calls if is_first and turn else calls
            if open_calls < 0:
                what = f"message {turn} is a tool's result without a call before it"
                raise RowFault("tool_result_without_call", what, mode)
            _check_link(turn, message, calls, mode)
        for call in message.tool_calls if names else ():
            name = call["function"]["name"]
            if name not in names:
                what = f"message {turn} calls {excerpt(name)}; the row has {listing(sorted(names))}"
                raise RowFault("unknown_tool", what, mode)


def _check_link(turn: int, result: Message, calls: Sequence[Mapping[str, Any]], mode: Mode) -> None:
    """Raise RowFault for a result whose id is none of the calls', if all of them have one."""
    ids = [call.get("id") for call in calls]
    if result.tool_call_id is None or None in ids or not ids or result.tool_call_id in ids:
        return
    what = f"message {turn} answers the call {excerpt(result.tool_call_id)}; the turn before has "
    raise RowFault("tool_result_without_call", f"{what}{listing(map(str, ids))}", mode)


def _calls(message: Message) -> float:
    """Return how many results may follow a message: one per call; any number if calls are text."""
    if message.tool_calls or message.role != "assistant":
        return len(message.tool_calls)
    return float("inf") if _has_call_text(message.content) else 0


def _has_call_text(content: str) -> bool:
    if _CALL_TEXT.search(content):
        return True
    try:
        value = json.loads(content) if content.lstrip()[:1] in ("{", "[") else None
    except json.JSONDecodeError:
        return False
    return isinstance(value, dict | list)


def _name(tool: Mapping[str, Any]) -> str:
    return str((tool.get("function") or tool).get("name"))
