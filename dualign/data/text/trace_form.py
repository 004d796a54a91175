"""A message as a template expects it: where it reads the trace is found by rendering a probe.

Families read a turn's trace from fields of other names, or from a part of the content. A trace in
the wrong place is left out, or printed inside the answer.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from dualign.data.conversation import Message
from dualign.data.think_tags import CLOSE, OPEN
from dualign.errors import TemplateError

_Field = Literal["reasoning_content", "thinking", "reasoning"]
TraceForm = _Field | Literal["parts", "content"]
"""A field of the message; parts of the content, of which one is of type `thinking`; or the head of
the content, in think tags.
"""
_ANSWER, _TRACE = "dualignprobe", "dualigntrace"
_QUOTED = re.compile(r"""["']type["']""")
"""A list of parts that is printed as Python or JSON."""
_FIELDS: tuple[_Field, ...] = get_args(_Field)


def find_trace_form(text: str, render: Callable[[list[dict[str, Any]]], str]) -> TraceForm:
    """Return where the template `text` reads the trace; `render` prints messages by it."""
    question = {"role": "user", "content": "Hi"}
    fields: dict[str, Any] = {name: f"{_TRACE}{number}" for number, name in enumerate(_FIELDS)}
    call = {"type": "function", "function": {"name": _ANSWER, "arguments": {}}}
    for turn in ({"content": _ANSWER}, {"content": "", "tool_calls": [call]}):
        printed = _printed(render, [question, {"role": "assistant", **turn, **fields}])
        for name in _FIELDS:
            if fields[name] in printed:
                return name
    parts = _parts(_TRACE, _ANSWER)
    printed = _printed(render, [question, {"role": "assistant", "content": parts}])
    if _TRACE in printed and _ANSWER in printed and not _QUOTED.search(printed):
        return "parts"
    # Some read the field in another place of a conversation, or by a variable of the row.
    return "reasoning_content" if "reasoning_content" in text else "content"


def message_dict(message: Message, form: TraceForm) -> dict[str, Any]:
    """Return a message as a template of that form expects it. The trace is in one place: a template
    that knows two would print it twice.
    """
    entry: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking is not None:
        entry |= _with_trace(message.thinking, message.content, form)
    if message.tool_calls:
        entry["tool_calls"] = [dict(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        entry["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        entry["name"] = message.name
    return entry


def _with_trace(trace: str, content: str, form: TraceForm) -> dict[str, Any]:
    match form:
        case "content":
            return {"content": f"{OPEN}\n{trace}\n{CLOSE}\n\n{content}"}
        case "parts":
            return {"content": _parts(trace, content)}
        case _:
            return {form: trace}


def _parts(trace: str, content: str) -> list[dict[str, str]]:
    parts = [{"type": "thinking", "thinking": trace}]
    return [*parts, {"type": "text", "text": content}] if content else parts


def _printed(render: Callable[[list[dict[str, Any]]], str], messages: list[dict[str, Any]]) -> str:
    try:
        return render(messages)
    except TemplateError:
        return ""


def with_json_arguments(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message whose calls have their arguments as JSON text."""
    calls = [
        {
            **call,
            "function": {**call["function"], "arguments": as_json(call["function"]["arguments"])},
        }
        for call in entry.get("tool_calls", ())
    ]
    return {**entry, "tool_calls": calls} if calls else dict(entry)


def as_json(arguments: Mapping[str, Any]) -> str:
    """Return the arguments of a call as JSON text."""
    return json.dumps(arguments, ensure_ascii=False, default=str)
