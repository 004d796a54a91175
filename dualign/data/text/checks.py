"""What a template did to a row: every part is in the text once, and a turn continues its prompt.

`render_rows` runs these checks on every row, so what they find is refused in training, and doctor
lists it by its code.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dualign.data.conversation import Conversation, Message
from dualign.data.faults import Code
from dualign.data.think_tags import CLOSE, OPEN, WHOLE_FLAG
from dualign.errors import TemplateError

_FLAGS = re.compile(rf"{WHOLE_FLAG.pattern}|(?<!\S)/system_override(?!\S)")
_TAG = re.compile(r"[<\[][^<>\[\]\s]*think[^<>\[\]\s]*[>\]]", re.IGNORECASE)
"""A tag of a think block: `<think>`, `[THINK]`, `<seed:think>`."""
_LONG_ENOUGH = 20
"""A shorter text may be repeated by chance (characters)."""


class RenderingError(TemplateError):
    """A row that a template renders wrongly. `code` names what is wrong with it."""

    def __init__(self, message: str, code: Code = "template") -> None:
        super().__init__(message)
        self.code: Code = code


class Defect(NamedTuple):
    """What is wrong with a rendered row, by its code."""

    code: Code
    what: str


def row_defects(conversation: Conversation, text: str) -> Iterator[Defect]:
    """Find what is lost or doubled in the text of a row."""
    for turn, message in enumerate(conversation.messages):
        if message.role != "assistant" and _is_lost(message, text):
            what = f"message {turn} ({message.role}) isn't in the text: {message.content[:80]!r}"
            yield Defect("message_lost", what)
    if conversation.template_kwargs:
        yield from _kwargs_defects(conversation.template_kwargs, text)
    if conversation.tools or conversation.template_kwargs.get("xml_tools"):
        yield from _tool_defects(_all_tools(conversation), conversation.messages, text)
    yield from _repeats(conversation, text)


def turn_defects(
    message: Message,
    opening: str,
    produced: str,
    headers: tuple[str, ...] = (),
    tags: tuple[str, str] = (OPEN, CLOSE),
) -> Iterator[Defect]:
    """Find a turn that doesn't continue its prompt.

    Args:
        message: the turn.
        opening: what the generation prompt appends to the conversation.
        produced: what the model has to produce after it.
        headers: what it appends elsewhere.
        tags: what the template writes around a trace.
    """
    whole = opening + produced
    if produced.startswith(headers) or (opening and produced.startswith(opening)):
        yield Defect("prompt_supervised", f"the turn repeats its prompt: {whole[:80]!r}")
        return
    if tags[0] not in whole:
        return
    if _is_empty_block(produced, tags):
        yield Defect("empty_think_supervised", f"the turn begins with {produced[:40]!r}")
        return
    in_calls = str(message.tool_calls) if message.tool_calls else ""
    opened, closed = (whole.count(tag) - in_calls.count(tag) for tag in tags)
    if opened > 1:
        yield Defect("thinking_doubled", f"the turn has two think blocks: {whole[:80]!r}")
    elif opened > closed:
        yield Defect("think_left_open", f"the turn doesn't close its think block: {whole[:80]!r}")


def find_tags(head: str, closing: str) -> tuple[str, str]:
    """Return the think tags that a template writes before and after a trace; ours without any."""
    first, last = _TAG.findall(head), _TAG.findall(closing)
    return (first[-1], last[0]) if first and last else (OPEN, CLOSE)


def _is_empty_block(produced: str, tags: tuple[str, str]) -> bool:
    begin = produced.lstrip()
    return begin.startswith(tags[0]) and begin[len(tags[0]) :].lstrip().startswith(tags[1])


def _tool_name(tool: Mapping[str, Any]) -> str:
    """Return the function's name in a schema or a call."""
    inner = tool.get("function")
    function = inner if isinstance(inner, Mapping) else tool
    return str(function.get("name", ""))


def _is_lost(message: Message, text: str) -> bool:
    content = message.content.strip()
    if content in text:
        return False
    # A tool's result may be printed as JSON.
    if any(json.dumps(content, ensure_ascii=ascii)[1:-1] in text for ascii in (True, False)):
        return False
    # Flags instruct the template, which joins the words around them.
    return _words(_FLAGS.sub("", content)) not in _words(text)


def _kwargs_defects(kwargs: Mapping[str, Any], text: str) -> Iterator[Defect]:
    value = kwargs.get("custom_instructions")
    if isinstance(value, str) and value.strip() and value.strip() not in text:
        if _words(_FLAGS.sub("", value)) in _words(text):
            return
        yield Defect("kwargs_ignored", f"custom_instructions {value[:80]!r} isn't in the text")


def _all_tools(conversation: Conversation) -> list[Any]:
    xml_tools = conversation.template_kwargs.get("xml_tools") or ()
    return [*conversation.tools, *([xml_tools] if isinstance(xml_tools, str) else xml_tools)]


def _tool_defects(tools: Sequence[Any], messages: Sequence[Message], text: str) -> Iterator[Defect]:
    for tool in tools:
        if isinstance(tool, Mapping) and str(dict(tool)) in text:
            what = f"{_tool_name(tool)} is printed as {str(dict(tool))[:80]!r}"
            yield Defect("tools_as_repr", what)
        elif isinstance(tool, Mapping) and not _is_shown(tool, messages, text):
            yield Defect("tools_lost", f"{_tool_name(tool)} isn't in the text")
        elif isinstance(tool, str) and tool.strip() not in text:
            code: Code = "tools_as_repr" if repr(tool) in text else "tools_lost"
            yield Defect(code, f"{tool[:80]!r} isn't in the text as it is")


def _is_shown(tool: Mapping[str, Any], messages: Sequence[Message], text: str) -> bool:
    """Return whether the text describes a tool. That it holds the tool's name isn't enough: calls
    and results hold it too.
    """
    name = _tool_name(tool)
    if name not in text:
        return False
    mentions = sum(_mentions(message, name, text) for message in messages)
    if text.count(name) > mentions or not mentions:
        return True
    words = _words(text)
    return any(
        _words(form) in words
        for description in _descriptions(tool)
        for form in (description, json.dumps(description)[1:-1])
    )


def _mentions(message: Message, name: str, text: str) -> int:
    """Return how often a message that isn't an instruction puts the name into the text."""
    if message.role == "system":
        return 0
    parts = [part for part in (message.content, message.thinking or "") if part in text]
    parts += [json.dumps(function, default=str) for function in message.functions]
    return sum(part.count(name) for part in parts)


def _descriptions(schema: Any) -> Iterator[str]:
    """Yield the descriptions in a schema, at any depth."""
    if isinstance(schema, Mapping):
        description = schema.get("description")
        if isinstance(description, str) and description.strip():
            yield description
        schema = list(schema.values())
    if isinstance(schema, list | tuple):
        for item in schema:
            yield from _descriptions(item)


def _repeats(conversation: Conversation, text: str) -> Iterator[Defect]:
    """Find traces and answers that occur more often in the text than in the row."""
    for turn, message in enumerate(conversation.messages):
        if message.role != "assistant":
            continue
        for what, part in (("trace", message.thinking), ("answer", message.content)):
            words = (part or "").strip()
            count = text.count(words) if len(words) >= _LONG_ENOUGH else 0
            if count > 1 and count > _row_text(conversation).count(words):
                yield Defect(
                    "thinking_doubled", f"the {what} of message {turn} is in the text twice"
                )


def _row_text(conversation: Conversation) -> str:
    return "\n".join(
        f"{message.thinking}\n{message.content}" if message.thinking else message.content
        for message in conversation.messages
    )


def _words(text: str) -> str:
    return " ".join(text.split())
