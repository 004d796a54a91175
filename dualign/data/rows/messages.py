"""One message as people write it -> Message: roles, contents, traces, calls."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dualign.data.conversation import Message, Role
from dualign.data.faults import RowFault
from dualign.data.rows.calls import as_calls, first_filled, parse_json
from dualign.data.rows.contents import MEDIA_KEYS, calls_in, check_media, text_of, thought_in
from dualign.data.rows.loss_flags import ROW_FLAGS, is_trained
from dualign.errors import excerpt, listing

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
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
    "tool_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
_CALL_IDS = ("tool_call_id", "call_id")
_TRACE_FIELDS = ("reasoning_content", "thinking", "reasoning", "thought")
_CALLS = ("function_call", "tool_call")
"""Roles of turns that are nothing but calls."""
_CONTENTS = ("content", "value", "text", "parts")
_KEYS = frozenset(
    {"role", "from", "id", "type", "name", "tool_name", "tool_calls", "function_call"}
)
"""Keys of a message that hold no text of it."""
MESSAGE_KEYS = frozenset(
    {"role", "from", "name", "tool_name", "tool_calls", "function_call", *_CALL_IDS, *_TRACE_FIELDS}
    | {*_CONTENTS, *ROW_FLAGS, *MEDIA_KEYS, "tools", "functions", "function_calls"}
)
"""Keys of a message that are read."""
_PLAIN = frozenset({"role", "from", "content", "value", *_TRACE_FIELDS})
"""Keys of a message that is nothing but a text, with or without a trace."""


def as_turn(value: Any, role: Role) -> list[Message]:
    """Parse a string as one turn of `role`, a list as a conversation, also as JSON, and a mapping as
    one message.
    """
    if isinstance(value, str):
        return _json_messages(value) or [Message(role=role, content=value)]
    if isinstance(value, bool | int | float):
        raise RowFault("bad_content", f"{excerpt(value)}: expected text or a list of messages")
    return as_messages([value] if isinstance(value, Mapping) else value)


def _json_messages(text: str) -> list[Message]:
    """Return the messages that a text is, as a CSV file keeps them; none if it is a text."""
    if not text.lstrip().startswith("[") or not text.rstrip().endswith("]"):
        return []
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return []
    objects = [item for item in value if isinstance(item, Mapping)]
    named = objects and all(item.keys() & {"role", "from"} for item in objects)
    return as_messages(value) if named and len(objects) == len(value) else []


def as_messages(value: Any) -> list[Message]:
    """Parse messages of OpenAI's or ShareGPT's kind, also as a JSON string."""
    if isinstance(value, str):
        try:
            value = parse_json(value, "messages", list)
        except RowFault as fault:
            raise RowFault("unknown_shape", str(fault)) from fault
    if not isinstance(value, Sequence) or not all(isinstance(item, Mapping) for item in value):
        raise RowFault(
            "unknown_shape", f"messages are {excerpt(value)}: expected a list of objects"
        )
    if not value:
        raise RowFault("empty_row", "a conversation without messages")
    return [_message(item) for item in value]


def _message(item: Mapping[str, Any]) -> Message:
    name = item.get("role") if item.get("role") is not None else item.get("from")
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise _unknown_role(item, name)
    plain = item.keys() <= _PLAIN  # as those of nearly all messages
    if not plain:
        check_media(item, f"a message of the {role}")
        _check_listed(item)
    content = _content(item, "content" if item.get("role") is not None else "value")
    train = plain or is_trained(item, role)
    if str(name).lower() in _CALLS:
        return Message(role="assistant", content="", tool_calls=as_calls(content), train=train)
    calls = [] if plain else item.get("tool_calls") or _old_call(item)
    calls = calls or calls_in(content)
    trace = _trace(item, content)
    if role != "assistant" and (calls or trace):
        what = f"a {'call' if calls else 'trace'} in a message of the {role}"
        raise RowFault("bad_tools" if calls else "bad_content", what)
    return Message(
        role=role,
        content=text_of(content),
        thinking=trace,
        tool_calls=as_calls(calls) if calls else (),
        train=train,
        **({} if plain else _links(item, role)),
    )


def _unknown_role(item: Mapping[str, Any], name: Any) -> RowFault:
    known = f"expected one of {', '.join(ROLES)}, or `columns` with "
    if name is None and not item.keys() & {"role", "from"}:
        what = f"a message with the keys {listing(item)} says no role under role or from: {known}"
        return RowFault("unknown_role", f"{what}{{role: KEY, content: KEY}}")
    return RowFault(
        "unknown_role",
        f"role {excerpt(name)}: {known}{{role: {{from: NAME, user: [...], assistant: [...]}}}}",
    )


def _check_listed(item: Mapping[str, Any]) -> None:
    listed = next((key for key in ("tools", "functions", "function_calls") if item.get(key)), None)
    if listed:
        what = (
            f"{listed} inside a message: expected the row's tools in a column, calls in tool_calls"
        )
        raise RowFault("bad_tools", what)


def _content(item: Mapping[str, Any], usual: str) -> Any:
    """Return the content of a message under its usual key, or else under the only one that it has.

    Raises:
        RowFault: none of the keys, but others that may hold the text.
    """
    filled = {key: item[key] for key in _CONTENTS if key in item and not _is_blank(item[key])}
    if len(filled) > 1 and len({text for text in filled.values() if isinstance(text, str)}) > 1:
        names = ", ".join(key for key in filled if isinstance(filled[key], str))
        raise RowFault("bad_content", f"a message with different texts in {names}")
    if filled:
        return filled[usual] if usual in filled else next(iter(filled.values()))
    spoken = any(item.get(key) for key in ("tool_calls", "function_call", *_TRACE_FIELDS))
    if item.get(usual) is None and not spoken and (keys := _unknown_texts(item)):
        what = f"a message with the keys {', '.join(map(str, item))}: its text may be in "
        raise RowFault("bad_content", f"{what}{', '.join(keys)}: expected it in {usual}")
    return item.get(usual)


def _is_blank(value: Any) -> bool:
    return value is None or value == "" or value == []


def _unknown_texts(item: Mapping[str, Any]) -> list[str]:
    """Return the keys, other than those of messages, that hold words."""
    return [
        key
        for key, value in item.items()
        if key not in _KEYS and value and isinstance(value, str | Sequence | Mapping)
    ]


def _trace(item: Mapping[str, Any], content: Any) -> str | None:
    """Return the trace of a field of its own, or of the content's parts; RowFault for two."""
    traces = [item[key] for key in _TRACE_FIELDS if item.get(key)]
    if not traces and isinstance(content, str):
        return None
    wrong = next((trace for trace in traces if not isinstance(trace, str)), None)
    if wrong is not None:
        raise RowFault("bad_content", f"a trace {excerpt(wrong)}: expected text")
    traces.extend(filter(None, [thought_in(content)]))
    if len(set(traces)) > 1:
        raise RowFault(
            "double_think", f"{len(set(traces))} different traces in fields of their own"
        )
    return traces[0] if traces else None


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
