"""Checks of a rendered row: every part is there once, and the right part is supervised."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualign.data.config import Supervise
from dualign.data.conversation import MODES, Conversation, Message, Mode
from dualign.data.text.spans import RenderedRow
from dualign.data.text.template import ChatTemplate
from dualign.data.think_tags import EMPTY_BLOCK, OPEN, WHOLE_FLAG
from dualign.doctor.findings import Finding
from dualign.doctor.rows import tool_name
from dualign.errors import TemplateError

_FLAGS = re.compile(rf"{WHOLE_FLAG.pattern}|(?<!\S)/system_override(?!\S)")
_LONG_ENOUGH = 20
"""A shorter text may be repeated by chance (characters)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnMarkers:
    """Text with which a template opens the model's turn in each mode, and closes it."""

    openings: Mapping[Mode, str]
    end_of_turn: str


def turn_markers(template: ChatTemplate) -> TurnMarkers:
    """Return what a template puts around an answer."""
    return TurnMarkers(
        openings={mode: opening(template, mode) for mode in MODES},
        end_of_turn=template.end_of_turn,
    )


def opening(template: ChatTemplate, mode: Mode) -> str:
    """Return the text that the generation prompt appends to a conversation."""
    messages = (Message(role="user", content="Hi"),)
    try:
        prompt = template.prompt(messages, mode=mode)
        probe = Conversation(messages=messages, mode=mode, source="probe", row=0)
        without = template.texts(probe)(len(messages), False)
    except TemplateError:
        return ""
    return prompt[len(without) :] if prompt.startswith(without) else ""


def check_rendering(
    rendered: RenderedRow, markers: TurnMarkers, *, supervise: Supervise
) -> Iterator[Finding]:
    """Find what is lost, doubled or wrongly supervised in the text of a row."""
    conversation = rendered.conversation
    if conversation is None or conversation.template_kwargs.get("verbatim"):
        return
    yield from _check_messages(conversation, rendered.text)
    if conversation.template_kwargs:
        yield from _check_kwargs(conversation.template_kwargs, rendered.text)
    if conversation.tools or conversation.template_kwargs.get("xml_tools"):
        yield from _check_tools(_all_tools(conversation), rendered.text)
    if supervise != "all":
        end = "" if supervise == "thinking" else markers.end_of_turn
        yield from _check_spans(rendered, markers.openings[rendered.mode], end)
        yield from _check_repeats(conversation, rendered.text)


def _check_messages(conversation: Conversation, text: str) -> Iterator[Finding]:
    for turn, message in enumerate(conversation.messages):
        content = message.content.strip()
        if message.role == "assistant" or content in text:
            continue
        # Flags instruct the template, and a tool result may be printed as JSON.
        pieces = [piece.strip() for piece in _FLAGS.split(content)]
        if all(piece in text for piece in pieces) or json.dumps(content)[1:-1] in text:
            continue
        # Templates that drop a flag join the words around it.
        if message.role == "system" and _words(_FLAGS.sub("", content)) in _words(text):
            continue
        yield Finding(
            "message_lost", f"message {turn} ({message.role}) isn't in the text: {content[:80]!r}"
        )


def _check_kwargs(kwargs: Mapping[str, Any], text: str) -> Iterator[Finding]:
    value = kwargs.get("custom_instructions")
    if isinstance(value, str) and value.strip() and value.strip() not in text:
        if _words(_FLAGS.sub("", value)) in _words(text):
            return
        yield Finding("kwargs_ignored", f"custom_instructions {value[:80]!r} isn't in the text")


def _all_tools(conversation: Conversation) -> list[Any]:
    xml_tools = conversation.template_kwargs.get("xml_tools") or ()
    return [*conversation.tools, *([xml_tools] if isinstance(xml_tools, str) else xml_tools)]


def _check_tools(tools: Sequence[Any], text: str) -> Iterator[Finding]:
    for tool in tools:
        if isinstance(tool, Mapping) and str(dict(tool)) in text:
            yield Finding(
                "tools_as_repr", f"{tool_name(tool)} is printed as {str(dict(tool))[:80]!r}"
            )
        elif isinstance(tool, Mapping) and tool_name(tool) not in text:
            yield Finding("tools_lost", f"{tool_name(tool)} isn't in the text")
        elif isinstance(tool, str) and tool.strip() not in text:
            code = "tools_as_repr" if repr(tool) in text else "tools_lost"
            yield Finding(code, f"{tool[:80]!r} isn't in the text as it is")


def _check_spans(rendered: RenderedRow, opening: str, end: str) -> Iterator[Finding]:
    for start, stop in rendered.spans:
        span = rendered.text[start:stop]
        if EMPTY_BLOCK.match(span):
            yield Finding("empty_think_supervised", f"a supervised turn begins with {span[:40]!r}")
        elif opening and span.startswith(opening):
            yield Finding("prompt_supervised", f"a supervised turn begins with {span[:40]!r}")
        if not span.endswith(end):
            yield Finding(
                "end_of_turn_unsupervised",
                f"a supervised turn ends with {span[-40:]!r}, not with {end!r}",
            )
        if span.count(OPEN) + opening.count(OPEN) > 1 and not EMPTY_BLOCK.match(span):
            yield Finding(
                "thinking_doubled", f"a turn has two think blocks: {(opening + span)[:80]!r}"
            )


def _check_repeats(conversation: Conversation, text: str) -> Iterator[Finding]:
    """Find traces and answers that occur more often in the text than in the row."""
    row_text = "\n".join(
        f"{message.thinking}\n{message.content}" if message.thinking else message.content
        for message in conversation.messages
    )
    for turn, message in enumerate(conversation.messages):
        if message.role != "assistant":
            continue
        for what, part in (("trace", message.thinking), ("answer", message.content)):
            words = (part or "").strip()
            if len(words) >= _LONG_ENOUGH and text.count(words) > row_text.count(words):
                yield Finding(
                    "thinking_doubled", f"the {what} of message {turn} is in the text twice"
                )


def _words(text: str) -> str:
    return " ".join(text.split())
