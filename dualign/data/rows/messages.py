"""One message as people write it -> Message: roles, contents, traces, calls."""

from collections.abc import Mapping, Sequence
from typing import Any

from dualign.data.conversation import Message, Role
from dualign.data.faults import RowFault
from dualign.data.rows.calls import as_calls, first_filled, parse_json
from dualign.errors import excerpt

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
_CALL_IDS = ("tool_call_id", "call_id")
_TRACE_FIELDS = ("reasoning_content", "thinking", "reasoning")


def as_turn(value: Any, role: Role) -> list[Message]:
    """Parse a string as one turn of `role`, a list as a conversation, a mapping as one message."""
    if isinstance(value, str):
        return [Message(role=role, content=value)]
    if isinstance(value, bool | int | float):
        raise RowFault("bad_content", f"{excerpt(value)}: expected text or a list of messages")
    return as_messages([value] if isinstance(value, Mapping) else value)


def as_messages(value: Any) -> list[Message]:
    """Parse messages of OpenAI's or ShareGPT's kind, also as a JSON string."""
    if isinstance(value, str):
        value = parse_json(value, "messages", list)
    if not isinstance(value, Sequence) or not all(isinstance(item, Mapping) for item in value):
        raise RowFault(
            "unknown_shape", f"messages are {excerpt(value)}: expected a list of objects"
        )
    if not value:
        raise RowFault("empty_row", "a conversation without messages")
    return [_message(item) for item in value]


def _message(item: Mapping[str, Any]) -> Message:
    name = item.get("role") if item.get("role") is not None else item.get("from")
    if name not in ROLES:
        raise RowFault("unknown_role", f"role {name!r}: expected one of {', '.join(ROLES)}")
    content = item.get("content") if item.get("role") is not None else item.get("value")
    if name == "function_call":
        return Message(role="assistant", content="", tool_calls=as_calls([content]))
    return Message(
        role=ROLES[name],
        content=text_of(content),
        thinking=_trace(item, content) if ROLES[name] == "assistant" else None,
        tool_calls=as_calls(item.get("tool_calls") or _old_call(item)),
        **_links(item, ROLES[name]),
        train=item.get("train") is not False and item.get("weight") != 0,
    )


def _trace(item: Mapping[str, Any], content: Any) -> str | None:
    """Return the trace of a field of its own, or of the content's parts of type thinking."""
    fields = (item[key] for key in _TRACE_FIELDS if item.get(key) is not None)
    trace = next(fields, None)
    if trace is None and not isinstance(content, str) and isinstance(content, Sequence):
        thoughts = [part["thinking"] for part in content if _is_thought(part)]
        trace = "".join(map(text_of, thoughts)) if thoughts else None
    if trace is not None and not isinstance(trace, str):
        raise RowFault("bad_content", f"a trace {excerpt(trace)}: expected text")
    return trace


def _is_thought(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "thinking" and "thinking" in part


def _links(item: Mapping[str, Any], role: Role) -> dict[str, Any]:
    """Return the call that a tool's result answers, and the name of the function or the speaker.

    The prompt for an answer can't hold the name of who will give it.
    """
    keys = {"tool_call_id": _CALL_IDS} if role == "tool" else {}
    keys |= {"name": ("name", "tool_name")} if role != "assistant" else {}
    values = {key: first_filled(item, names) for key, names in keys.items()}
    return {key: str(value) for key, value in values.items() if value is not None}


def _old_call(item: Mapping[str, Any]) -> list[Any]:
    """Return OpenAI's `function_call`, the form before `tool_calls`."""
    call = item.get("function_call")
    return [call] if call else []


def text_of(content: Any) -> str:
    """Return the text of a content: a string, or parts without those of the trace."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise RowFault("bad_content", f"content {excerpt(content)}: expected text or parts")
    parts = [part for part in content if not _is_thought(part)]
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise RowFault(
                "bad_content", f"content part {excerpt(part)}: only text can be trained on"
            )
    return "".join(str(part.get("text") or "") for part in parts)
