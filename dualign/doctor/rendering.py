"""What a template made of a row: is everything there, once, and supervised as it should be?"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualign.data.config import Supervise
from dualign.data.conversation import MODES, Conversation, Message, Mode
from dualign.data.modes import EMPTY_BLOCK, OPEN, WHOLE_FLAG
from dualign.data.text.spans import RenderedRow
from dualign.data.text.template import ChatTemplate
from dualign.doctor.findings import Fault
from dualign.doctor.rows import tool_name
from dualign.errors import TemplateError

_FLAGS = re.compile(rf"{WHOLE_FLAG.pattern}|(?<!\S)/system_override(?!\S)")
_LONG_ENOUGH = 20
"""Characters from which a text doesn't repeat by chance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turns:
    """How a template opens the model's turn in each mode, and closes it."""

    openings: Mapping[Mode, str]
    end_of_turn: str


def turns_of(template: ChatTemplate) -> Turns:
    """What a template puts around an answer."""
    return Turns(
        openings={mode: opening(template, mode) for mode in MODES},
        end_of_turn=template.end_of_turn,
    )


def opening(template: ChatTemplate, mode: Mode) -> str:
    """What the generation prompt adds to a conversation, in the words of the template."""
    asked = (Message(role="user", content="Hi"),)
    try:
        prompt = template.prompt(asked, mode=mode)
        probe = Conversation(messages=asked, mode=mode, source="probe", row=0)
        without = template.texts(probe)(len(asked), False)
    except TemplateError:
        return ""
    return prompt[len(without) :] if prompt.startswith(without) else ""


def rendering_faults(
    rendered: RenderedRow, turns: Turns, *, supervise: Supervise
) -> Iterator[Fault]:
    """What is lost or told twice in the text of a row."""
    conversation = rendered.conversation
    if conversation is None or conversation.template_kwargs.get("verbatim"):
        return
    yield from _lost_messages(conversation, rendered.text)
    if conversation.template_kwargs:
        yield from _lost_kwargs(conversation.template_kwargs, rendered.text)
    if conversation.tools or conversation.template_kwargs.get("xml_tools"):
        yield from _tool_faults(_all_tools(conversation), rendered.text)
    if supervise != "all":
        ends = "" if supervise == "thinking" else turns.end_of_turn
        yield from _span_faults(rendered, turns.openings[rendered.mode], ends)
        yield from _repeated(conversation, rendered.text)


def _lost_messages(conversation: Conversation, text: str) -> Iterator[Fault]:
    for turn, message in enumerate(conversation.messages):
        content = message.content.strip()
        if message.role == "assistant" or content in text:
            continue
        # Flags are instructions to the template, and a result may be printed as JSON.
        pieces = [piece.strip() for piece in _FLAGS.split(content)]
        if all(piece in text for piece in pieces) or json.dumps(content)[1:-1] in text:
            continue
        # Templates that drop a flag join the words around it.
        if message.role == "system" and _words(_FLAGS.sub("", content)) in _words(text):
            continue
        yield Fault(
            "message_lost", f"message {turn} ({message.role}) isn't in the text: {content[:80]!r}"
        )


def _lost_kwargs(kwargs: Mapping[str, Any], text: str) -> Iterator[Fault]:
    given = kwargs.get("custom_instructions")
    if isinstance(given, str) and given.strip() and given.strip() not in text:
        if _words(_FLAGS.sub("", given)) in _words(text):
            return
        yield Fault("kwargs_ignored", f"custom_instructions {given[:80]!r} isn't in the text")


def _all_tools(conversation: Conversation) -> list[Any]:
    named = conversation.template_kwargs.get("xml_tools") or ()
    return [*conversation.tools, *([named] if isinstance(named, str) else named)]


def _tool_faults(tools: Sequence[Any], text: str) -> Iterator[Fault]:
    for tool in tools:
        if isinstance(tool, Mapping) and str(dict(tool)) in text:
            yield Fault(
                "tools_as_repr", f"{tool_name(tool)} is printed as {str(dict(tool))[:80]!r}"
            )
        elif isinstance(tool, Mapping) and tool_name(tool) not in text:
            yield Fault("tools_lost", f"{tool_name(tool)} isn't in the text")
        elif isinstance(tool, str) and tool.strip() not in text:
            code = "tools_as_repr" if repr(tool) in text else "tools_lost"
            yield Fault(code, f"{tool[:80]!r} isn't in the text as it is")


def _span_faults(rendered: RenderedRow, opened: str, ends: str) -> Iterator[Fault]:
    for start, stop in rendered.spans:
        span = rendered.text[start:stop]
        if EMPTY_BLOCK.match(span):
            yield Fault("empty_think_supervised", f"a supervised turn begins with {span[:40]!r}")
        elif opened and span.startswith(opened):
            yield Fault("prompt_supervised", f"a supervised turn begins with {span[:40]!r}")
        if not span.endswith(ends):
            yield Fault(
                "end_of_turn_unsupervised",
                f"a supervised turn ends with {span[-40:]!r}, not with {ends!r}",
            )
        if span.count(OPEN) + opened.count(OPEN) > 1 and not EMPTY_BLOCK.match(span):
            yield Fault(
                "thinking_doubled", f"a turn has two think blocks: {(opened + span)[:80]!r}"
            )


def _repeated(conversation: Conversation, text: str) -> Iterator[Fault]:
    """Traces and answers that the text has more often than the row."""
    said = "\n".join(
        f"{one.thinking}\n{one.content}" if one.thinking else one.content
        for one in conversation.messages
    )
    for turn, message in enumerate(conversation.messages):
        if message.role != "assistant":
            continue
        for what, part in (("trace", message.thinking), ("answer", message.content)):
            words = (part or "").strip()
            if len(words) >= _LONG_ENOUGH and text.count(words) > said.count(words):
                yield Fault(
                    "thinking_doubled", f"the {what} of message {turn} is in the text twice"
                )


def _words(text: str) -> str:
    return " ".join(text.split())
