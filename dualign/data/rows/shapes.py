"""The shapes in which people keep conversations, in one table: SHAPES.

A shape says which columns its rows fill and how they are parsed. Detection over a whole source
(shape_check.py), parsing, messages and the table of docs/data.md all follow SHAPES, so a new shape
is one entry and its parse function.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualign.data.conversation import Message, Role
from dualign.data.faults import RowFault
from dualign.errors import excerpt

Row = Mapping[str, Any]
Part = tuple[Message, ...]
Parts = tuple[Part, ...]
"""(messages,) of a conversation, or (prompt, chosen, rejected) of a pair."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowShape:
    """A row has the first shape of SHAPES all of whose `columns` it fills and none of whose
    `excludes`.

    A key with the value None counts as absent: tables fill such keys in. `verbatim`: the row is
    plain text that bypasses the template.
    """

    name: str
    columns: tuple[str, ...]
    excludes: tuple[str, ...] = ()
    parse: Callable[[Row], Parts]
    is_pair: bool = False
    verbatim: bool = False
    hint: str = ""
    """where the rest of the row may be, for messages"""

    def fits(self, row: Row) -> bool:
        """Return whether the row fills the columns of the shape."""
        return _has(row, *self.columns) and not any(_has(row, name) for name in self.excludes)


def shapes_of(*, pairs: bool) -> tuple[RowShape, ...]:
    """Return the shapes of preference pairs, or those of conversations."""
    return tuple(shape for shape in SHAPES if shape.is_pair == pairs)


def shape_of(row: Row, *, pairs: bool) -> RowShape | None:
    """Return the shape of a row; None if it has no known one."""
    return next((shape for shape in shapes_of(pairs=pairs) if shape.fits(row)), None)


def expected_shapes(*, pairs: bool) -> str:
    """Return the names of all shapes, for messages."""
    return "; ".join(shape.name + shape.hint for shape in shapes_of(pairs=pairs))


def unknown_shape(row: Row, *, pairs: bool) -> RowFault:
    """Return the fault of a row without a known shape."""
    keys = ", ".join(key for key in row if row[key] is not None) or "(none)"
    return RowFault(
        "unknown_shape", f"a row with keys {keys}. Expected {expected_shapes(pairs=pairs)}"
    )


_ROLES: dict[str, Role] = {
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
_HISTORY: tuple[Role, Role] = ("user", "assistant")
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_TRACE_FIELDS = ("reasoning_content", "thinking", "reasoning")


def _messages(row: Row) -> Parts:
    return (_with_system(row, _as_messages(row["messages"])),)


def _sharegpt(row: Row) -> Parts:
    return (_with_system(row, _as_messages(row["conversations"])),)


def _prompt_completion(row: Row) -> Parts:
    turns = [*_as_turn(row["prompt"], "user"), *_as_turn(row["completion"], "assistant")]
    return (_with_system(row, turns),)


def _alpaca(row: Row) -> Parts:
    question = "\n\n".join(_text(row[key]) for key in ("instruction", "input") if row.get(key))
    answer = Message(role="assistant", content=_text(row["output"]))
    history = row.get("history") or ()
    if any(len(pair) != len(_HISTORY) for pair in history):
        raise RowFault(
            "unknown_shape", f"history {excerpt(history)}: expected [question, answer] pairs"
        )
    past = [
        Message(role=role, content=_text(text))
        for pair in history
        for role, text in zip(_HISTORY, pair, strict=True)
    ]
    return (_with_system(row, [*past, Message(role="user", content=question), answer]),)


def _plain_text(row: Row) -> Parts:
    if not isinstance(row["text"], str) or not row["text"].strip():
        raise RowFault("empty_row", f"text is {row['text']!r}: expected some text")
    return ((Message(role="assistant", content=row["text"]),),)


def _pair(row: Row) -> Parts:
    """Parse a preference row. The turns that chosen and rejected share belong to the prompt.

    `prompt` may be a string that `chosen` repeats as its first user message, as UltraFeedback and
    SmolTalk2 have it. Without one, strings are read as transcripts (`Human: ... Assistant: ...`).
    """
    explicit = _explicit_prompt(row)
    parse = _as_turn if explicit else _as_transcript
    chosen, rejected = (parse(row[key], "assistant") for key in ("chosen", "rejected"))
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    prompt = _join_prompt(explicit, chosen[:shared])
    return _with_system(row, prompt), tuple(chosen[shared:]), tuple(rejected[shared:])


SHAPES: tuple[RowShape, ...] = (
    RowShape(name="messages", columns=("messages",), parse=_messages),
    RowShape(name="conversations (ShareGPT)", columns=("conversations",), parse=_sharegpt),
    RowShape(
        name="prompt + completion", columns=("prompt", "completion"), parse=_prompt_completion
    ),
    RowShape(
        name="instruction + output (Alpaca)", columns=("instruction", "output"), parse=_alpaca
    ),
    RowShape(
        name="text",
        columns=("text",),
        # Half of another shape isn't plain text.
        excludes=("messages", "conversations", "prompt", "instruction"),
        parse=_plain_text,
        verbatim=True,
    ),
    RowShape(
        name="chosen + rejected",
        columns=("chosen", "rejected"),
        parse=_pair,
        is_pair=True,
        hint=", with a prompt in a column of its own or at the head of both",
    ),
)


def _explicit_prompt(row: Row) -> list[Message]:
    """Return the prompt of a column of its own: `prompt`, ShareGPT's `conversations`, Orca's
    `question`.
    """
    names = ("prompt", "conversations", "question")
    name = next((name for name in names if _has(row, name)), None)
    return _as_turn(row[name], "user") if name else []


def _as_transcript(value: Any, role: Role) -> list[Message]:
    """Parse HH-RLHF's strings: turns that begin with `Human:` or `Assistant:` after an empty line."""
    parts = _SPEAKER.split(f"\n\n{value.strip()}") if isinstance(value, str) else []
    if len(parts) < 3 or parts[0].strip():
        return _as_turn(value, role)
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [Message(role=_ROLES[speaker.lower()], content=text.strip()) for speaker, text in turns]


def _as_turn(value: Any, role: Role) -> list[Message]:
    """Parse a string as one turn of `role`, a list as a conversation, a mapping as one message."""
    if isinstance(value, str):
        return [Message(role=role, content=value)]
    if isinstance(value, bool | int | float):
        raise RowFault("bad_content", f"{excerpt(value)}: expected text or a list of messages")
    return _as_messages([value] if isinstance(value, Mapping) else value)


def _as_messages(value: Any) -> list[Message]:
    """Parse messages of OpenAI's or ShareGPT's kind, also as a JSON string."""
    if isinstance(value, str):
        value = _json(value, "messages", list)
    if not isinstance(value, Sequence) or not all(isinstance(item, Mapping) for item in value):
        raise RowFault(
            "unknown_shape", f"messages are {excerpt(value)}: expected a list of objects"
        )
    if not value:
        raise RowFault("empty_row", "a conversation without messages")
    return [_message(item) for item in value]


def as_kwargs(value: Any) -> dict[str, Any]:
    """Parse `chat_template_kwargs`, without the keys that a table filled with None."""
    if isinstance(value, str):
        value = _json(value, "chat_template_kwargs", dict)
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
        value = _json(value, "tools", list)
    if isinstance(value, Mapping) or not isinstance(value, Sequence):
        raise RowFault("bad_tools", f"tools are {excerpt(value)}: expected a list of schemas")
    tools = [_json(tool, "a tool", dict) if isinstance(tool, str) else tool for tool in value]
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise RowFault("bad_tools", f"tools are {excerpt(value)}: expected a list of schemas")
    return tuple(tools)


def _message(item: Mapping[str, Any]) -> Message:
    name = item.get("role") if item.get("role") is not None else item.get("from")
    if name not in _ROLES:
        raise RowFault("unknown_role", f"role {name!r}: expected one of {', '.join(_ROLES)}")
    content = item.get("content") if item.get("role") is not None else item.get("value")
    if name == "function_call":
        return Message(role="assistant", content="", tool_calls=_calls([content]))
    return Message(
        role=_ROLES[name],
        content=_text(content),
        thinking=_trace(item, content) if _ROLES[name] == "assistant" else None,
        tool_calls=_calls(item.get("tool_calls") or _old_call(item)),
        train=item.get("train") is not False and item.get("weight") != 0,
    )


def _trace(item: Mapping[str, Any], content: Any) -> str | None:
    """Return the trace of a field of its own, or of the content's parts of type thinking."""
    fields = (item[key] for key in _TRACE_FIELDS if item.get(key) is not None)
    trace = next(fields, None)
    if trace is None and not isinstance(content, str) and isinstance(content, Sequence):
        thoughts = [part["thinking"] for part in content if _is_thought(part)]
        trace = "".join(map(_text, thoughts)) if thoughts else None
    if trace is not None and not isinstance(trace, str):
        raise RowFault("bad_content", f"a trace {excerpt(trace)}: expected text")
    return trace


def _is_thought(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "thinking" and "thinking" in part


def _old_call(item: Mapping[str, Any]) -> list[Any]:
    """Return OpenAI's `function_call`, the form before `tool_calls`."""
    call = item.get("function_call")
    return [call] if call else []


def _text(content: Any) -> str:
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


def _calls(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Parse calls into `{"type": "function", "function": {"name", "arguments": {...}}}`, JSON
    included.
    """
    if isinstance(value, str):
        value = _json(value, "tool_calls", list)
    return tuple(_call(item) for item in value)


def _call(item: Any) -> Mapping[str, Any]:
    call = _json(item, "a tool call", dict) if isinstance(item, str) else item
    function = (call.get("function") or call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not function.get("name"):
        raise RowFault("bad_tools", f"tool call {excerpt(item)}: expected a function name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _json(arguments, f"the arguments of {function['name']}", dict)
    return {
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments or {}},
    }


def _with_system(row: Row, messages: list[Message]) -> Part:
    system = row.get("system")
    if not system or (messages and messages[0].role == "system"):
        return tuple(messages)
    return (Message(role="system", content=_text(system)), *messages)


def _join_prompt(explicit: list[Message], shared: list[Message]) -> list[Message]:
    """Join the prompt's own column and the shared turns, without repeating turns that are in both."""
    if not shared or not explicit:
        return explicit or shared
    spoken = [message for message in shared if message.role != "system"]
    if explicit in (shared, spoken) or (len(explicit) == 1 and explicit[0] in shared):
        return shared
    return [*explicit, *shared]


def _json(text: str, what: str, kind: type) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RowFault("bad_tools", f"{what} isn't JSON: {excerpt(text)} ({error})") from error
    if not isinstance(value, kind):
        raise RowFault("bad_tools", f"{what} is {excerpt(text)}: expected a JSON {kind.__name__}")
    return value


def _has(row: Row, *keys: str) -> bool:
    return all(row.get(key) is not None for key in keys)
