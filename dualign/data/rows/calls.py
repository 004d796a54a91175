"""Tools and calls in the forms in which rows hold them: lists, objects, JSON as text."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dualign.data.faults import RowFault
from dualign.errors import excerpt, listing

_ARGUMENTS = ("arguments", "parameters", "args", "input")
_IN_CALLS = ("id", "call_id", "type", "index", "name")


def as_kwargs(value: Any) -> dict[str, Any]:
    """Parse `chat_template_kwargs`, without the keys that a table filled with None."""
    if isinstance(value, str):
        value = parse_json(value, "chat_template_kwargs", dict)
    if not isinstance(value, Mapping | None):
        raise RowFault(
            "unknown_shape", f"chat_template_kwargs {excerpt(value)}: expected an object"
        )
    kwargs = {key: item for key, item in (value or {}).items() if item is not None}
    for key in {"xml_tools", "python_tools"} & kwargs.keys():
        _check_listed_tools(key, kwargs[key])
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


def as_tools(value: Any, *, functions: Any = None) -> tuple[Mapping[str, Any], ...]:
    """Parse function schemas: a list, or JSON; each item may be JSON too.

    `functions` is OpenAI's column before `tools`: the functions without their envelopes.
    """
    tools = _schemas(value)
    old = tuple({"type": "function", "function": _function(item)} for item in _schemas(functions))
    if tools and old and [_function(tool) for tool in tools] != [_function(tool) for tool in old]:
        raise RowFault("bad_tools", "tools and functions differ: expected one of the two columns")
    return tools or old


def _function(tool: Mapping[str, Any]) -> Any:
    return tool.get("function") or tool


def _schemas(value: Any) -> tuple[Mapping[str, Any], ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        value = parse_json(value, "tools", list)
    if isinstance(value, Mapping) or not isinstance(value, Sequence):
        raise RowFault("bad_tools", f"tools are {excerpt(value)}: expected a list of schemas")
    tools = [parse_json(tool, "a tool", dict) if isinstance(tool, str) else tool for tool in value]
    if not all(
        isinstance(tool, Mapping) and isinstance(_function(tool), Mapping) for tool in tools
    ):
        raise RowFault("bad_tools", f"tools are {excerpt(value)}: expected a list of schemas")
    return tuple(tools)


def as_calls(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Parse calls into `{"id", "type": "function", "function": {"name", "arguments": {...}}}`, JSON
    included. A call without an id has none afterwards.
    """
    if isinstance(value, str):
        value = parse_json(value, "tool_calls", list if value.lstrip()[:1] == "[" else dict)
    if value is not None and not isinstance(value, Sequence | Mapping):
        raise RowFault("bad_tools", f"tool_calls are {excerpt(value)}: expected a list of calls")
    return tuple(_call(item) for item in ([value] if isinstance(value, Mapping) else value or ()))


def _call(item: Any) -> Mapping[str, Any]:
    call = parse_json(item, "a tool call", dict) if isinstance(item, str) else item
    function = (call.get("function") or call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise RowFault("bad_tools", f"tool call {excerpt(item)}: expected a function name")
    identity = first_filled(call, ("id", "call_id"))
    return {
        **({} if identity is None else {"id": str(identity)}),
        "type": "function",
        "function": {"name": name, "arguments": _arguments(function)},
    }


def _arguments(function: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments of a call, which Llama and Anthropic call by other names."""
    what = f"the arguments of {function['name']:.40}"
    value = first_filled(function, _ARGUMENTS)
    if value is None:
        unknown = [key for key in function if key not in (*_ARGUMENTS, *_IN_CALLS)]
        if unknown:
            names = listing(unknown)
            raise RowFault(
                "bad_tools", f"{what}: expected them under arguments; the call has {names}"
            )
        return {}
    if isinstance(value, str):
        value = parse_json(value, what, dict)
    if not isinstance(value, Mapping):
        raise RowFault("bad_tools", f"{what} are {excerpt(value)}: expected an object")
    return value


def first_filled(item: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """Return the first value of these keys that is neither null nor blank; else None."""
    values = (item.get(key) for key in keys)
    return next((value for value in values if value is not None and not _is_blank(value)), None)


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def parse_json(text: str, what: str, kind: type) -> Any:
    """Return the value of a JSON text; RowFault if it isn't JSON, or of another kind."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RowFault("bad_tools", f"{what} isn't JSON: {excerpt(text)} ({error})") from error
    if not isinstance(value, kind):
        raise RowFault("bad_tools", f"{what} is {excerpt(text)}: expected a JSON {kind.__name__}")
    return value
