"""The shapes in which people keep conversations -> messages. One small function for each shape."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dualign.data.conversation import Message, Role
from dualign.data.faults import RowFault
from dualign.errors import excerpt

Row = Mapping[str, Any]

SHAPES = (
    "messages; prompt + completion; conversations (ShareGPT); instruction + output (Alpaca); text"
)
PAIR_SHAPES = "chosen + rejected, with a prompt in a column of its own or at the head of both"
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


def messages_of(row: Row) -> list[Message]:
    """The messages of a row in any known shape. Keys that are None count as absent: tables fill
    them in.
    """
    if _has(row, "messages"):
        return _with_system(row, as_messages(row["messages"]))
    if _has(row, "conversations"):
        return _with_system(row, as_messages(row["conversations"]))
    if _has(row, "prompt", "completion"):
        turns = [*as_turn(row["prompt"], "user"), *as_turn(row["completion"], "assistant")]
        return _with_system(row, turns)
    if _has(row, "instruction", "output"):
        return _alpaca(row)
    raise RowFault("unknown_shape", f"a row with {_keys(row)}. Expected {SHAPES}")


def plain_text(row: Row) -> str | None:
    """The text of a row that is nothing but text."""
    shaped = ("messages", "conversations", "prompt", "instruction")
    if not _has(row, "text") or any(_has(row, key) for key in shaped):
        return None
    if not isinstance(row["text"], str) or not row["text"].strip():
        raise RowFault("empty_row", f"text is {row['text']!r}: expected some text")
    return row["text"]


def pair_of(row: Row) -> tuple[list[Message], list[Message], list[Message]]:
    """(prompt, chosen, rejected) of a preference row; what chosen and rejected share belongs to the
    prompt.

    `prompt` may be a string that `chosen` repeats as its first user message, as UltraFeedback and
    SmolTalk2 have it. Without one, strings are read as transcripts (`Human: ... Assistant: ...`).
    """
    if not _has(row, "chosen", "rejected"):
        raise RowFault("unknown_shape", f"a row with {_keys(row)}. Expected {PAIR_SHAPES}")
    given = _given_prompt(row)
    read = as_turn if given else _as_transcript
    chosen, rejected = (read(row[key], "assistant") for key in ("chosen", "rejected"))
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    prompt = _joined(given, chosen[:shared])
    return _with_system(row, prompt), chosen[shared:], rejected[shared:]


def _given_prompt(row: Row) -> list[Message]:
    """The prompt in its own column: `prompt`, ShareGPT's `conversations`, or Orca's `question`."""
    names = ("prompt", "conversations", "question")
    name = next((name for name in names if _has(row, name)), None)
    return as_turn(row[name], "user") if name else []


def _as_transcript(value: Any, role: Role) -> list[Message]:
    """HH-RLHF's strings: turns that begin with `Human:` or `Assistant:` after an empty line."""
    parts = _SPEAKER.split(f"\n\n{value.strip()}") if isinstance(value, str) else []
    if len(parts) < 3 or parts[0].strip():
        return as_turn(value, role)
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [Message(role=_ROLES[who.lower()], content=text.strip()) for who, text in turns]


def as_turn(value: Any, role: Role) -> list[Message]:
    """A string is one turn of `role`; a list is a conversation; a mapping is one message."""
    if isinstance(value, str):
        return [Message(role=role, content=value)]
    if isinstance(value, bool | int | float):
        raise RowFault("bad_content", f"{excerpt(value)}: expected text or a list of messages")
    return as_messages([value] if isinstance(value, Mapping) else value)


def as_messages(value: Any) -> list[Message]:
    """Messages of OpenAI's or ShareGPT's kind; a JSON string of such a list is read too."""
    if isinstance(value, str):
        value = _json(value, "messages", list)
    if not isinstance(value, Sequence) or not all(isinstance(one, Mapping) for one in value):
        raise RowFault(
            "unknown_shape", f"messages are {excerpt(value)}: expected a list of objects"
        )
    if not value:
        raise RowFault("empty_row", "a conversation without messages")
    return [_message(one) for one in value]


def as_kwargs(value: Any) -> dict[str, Any]:
    """What `chat_template_kwargs` says, without the keys that a table filled with None."""
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
        found = f"custom_instructions {excerpt(instructions)}: expected text"
        raise RowFault("bad_content", found)
    return kwargs


def _check_listed_tools(key: str, value: Any) -> None:
    """SmolTalk2 keeps tools as text, or as a list of texts; a template prints them as they are."""
    listed = [value] if isinstance(value, str | Mapping) else value
    if not isinstance(listed, Sequence) or not all(
        isinstance(one, str | Mapping) for one in listed
    ):
        raise RowFault("bad_tools", f"{key} is {excerpt(value)}: expected a list of schemas")


def as_tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Function schemas from a list, or from JSON; each item may be JSON too."""
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        value = _json(value, "tools", list)
    if isinstance(value, Mapping) or not isinstance(value, Sequence):
        raise RowFault("bad_tools", f"tools are {excerpt(value)}: expected a list of schemas")
    items = [_json(one, "a tool", dict) if isinstance(one, str) else one for one in value]
    if not all(isinstance(one, Mapping) for one in items):
        raise RowFault("bad_tools", f"tools are {excerpt(value)}: expected a list of schemas")
    return tuple(items)


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
    """A trace in a field of its own, or in the content's parts of type thinking."""
    fields = (item[key] for key in _TRACE_FIELDS if item.get(key) is not None)
    found = next(fields, None)
    if found is None and not isinstance(content, str) and isinstance(content, Sequence):
        thoughts = [part["thinking"] for part in content if _is_thought(part)]
        found = "".join(map(_text, thoughts)) if thoughts else None
    if found is not None and not isinstance(found, str):
        raise RowFault("bad_content", f"a trace {excerpt(found)}: expected text")
    return found


def _is_thought(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "thinking" and "thinking" in part


def _old_call(item: Mapping[str, Any]) -> list[Any]:
    """OpenAI's `function_call` of before `tool_calls`."""
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
    """Calls as `{"type": "function", "function": {"name", "arguments": {...}}}`; JSON arguments are
    read.
    """
    if isinstance(value, str):
        value = _json(value, "tool_calls", list)
    return tuple(_call(one) for one in value)


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


def _alpaca(row: Row) -> list[Message]:
    question = "\n\n".join(_text(row[key]) for key in ("instruction", "input") if row.get(key))
    answer = Message(role="assistant", content=_text(row["output"]))
    turns = [Message(role="user", content=question), answer]
    past = row.get("history") or ()
    if any(len(pair) != len(_HISTORY) for pair in past):
        raise RowFault(
            "unknown_shape", f"history {excerpt(past)}: expected [question, answer] pairs"
        )
    before = [
        Message(role=role, content=_text(text))
        for pair in past
        for role, text in zip(_HISTORY, pair, strict=True)
    ]
    return _with_system(row, [*before, *turns])


def _with_system(row: Row, messages: list[Message]) -> list[Message]:
    system = row.get("system")
    if not system or (messages and messages[0].role == "system"):
        return messages
    return [Message(role="system", content=_text(system)), *messages]


def _joined(given: list[Message], shared: list[Message]) -> list[Message]:
    """The explicit prompt and the shared beginning, without saying twice what both say."""
    if not shared or not given:
        return given or shared
    spoken = [message for message in shared if message.role != "system"]
    if given in (shared, spoken) or (len(given) == 1 and given[0] in shared):
        return shared
    return [*given, *shared]


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


def _keys(row: Row) -> str:
    return f"keys {', '.join(key for key in row if row[key] is not None) or '(none)'}"
