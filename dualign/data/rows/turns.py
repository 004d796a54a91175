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
    for turn, message in enumerate(messages):
        if message.role == "tool":
            is_first = not turn or messages[turn - 1].role != "tool"
            open_calls = (_calls(messages[turn - 1]) if turn and is_first else open_calls) - 1
            if open_calls < 0:
                what = f"message {turn} is a tool's result without a call before it"
                raise RowFault("tool_result_without_call", what, mode)
        for call in message.tool_calls if names else ():
            name = call["function"]["name"]
            if name not in names:
                what = f"message {turn} calls {excerpt(name)}; the row has {listing(sorted(names))}"
                raise RowFault("unknown_tool", what, mode)


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
