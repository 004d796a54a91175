"""Tools and calls in the forms in which rows hold them: lists, objects, JSON as text."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dualign.data.faults import RowFault
from dualign.errors import excerpt


def as_kwargs(value: Any) -> dict[str, Any]:
    """Parse `chat_template_kwargs`, without the keys that a table filled with None."""
    if isinstance(value, str):
        value = parse_json(value, "chat_template_kwargs", dict)
    if not isinstance(value, Mapping | None):
        raise RowFault(
            "unknown_shape", f"chat_template_kwargs {excerpt(value)}: expected an object"
        )
    kwargs = {key: item for key, item in (value or {}).items() if item is not None}
    for key in ("xml_tools", "python_tools"):
        _check_listed_tools(key, kwargs.get(key, ()))
    instructions = kwargs.get("custom_instructions", "")
    if not isinstance(instructions, str):
        raise RowFault("bad_content", f"custom_instructions {excerpt(instructions)}: expected text")
    return kwargs


def _check_listed_tools(key: str, value: Any) -> None:
    """Check SmolTalk2's tools: text or a list of texts, which a template prints as they are."""
    listed = [value] if isinstance(value, str | Mapping) else value
    if not isinstance(listed, Sequence) or not all(
        isinstance(tool, str | Mapping) for tool in listed
    ):
        raise RowFault("bad_tools", f"{key} is {excerpt(value)}: expected a list of schemas")


def as_tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Parse function schemas: a list, or JSON; each item may be JSON too."""
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        value = parse_json(value, "tools", list)
    if isinstance(value, Mapping) or not isinstance(value, Sequence):
        raise RowFault("bad_tools", f"tools are {excerpt(value)}: expected a list of schemas")
    tools = [parse_json(tool, "a tool", dict) if isinstance(tool, str) else tool for tool in value]
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise RowFault("bad_tools", f"tools are {excerpt(value)}: expected a list of schemas")
    return tuple(tools)


def as_calls(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Parse calls into `{"type": "function", "function": {"name", "arguments": {...}}}`, JSON
    included.
    """
    if isinstance(value, str):
        value = parse_json(value, "tool_calls", list)
    return tuple(_call(item) for item in value)


def _call(item: Any) -> Mapping[str, Any]:
    call = parse_json(item, "a tool call", dict) if isinstance(item, str) else item
    function = (call.get("function") or call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not function.get("name"):
        raise RowFault("bad_tools", f"tool call {excerpt(item)}: expected a function name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_json(arguments, f"the arguments of {function['name']}", dict)
    return {
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments or {}},
    }


def parse_json(text: str, what: str, kind: type) -> Any:
    """Return the value of a JSON text; RowFault if it isn't JSON, or of another kind."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RowFault("bad_tools", f"{what} isn't JSON: {excerpt(text)} ({error})") from error
    if not isinstance(value, kind):
        raise RowFault("bad_tools", f"{what} is {excerpt(text)}: expected a JSON {kind.__name__}")
    return value
