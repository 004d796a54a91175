"""Conversation -> Rendered: the text of a row, and the parts of it that the model has to produce.

What a model must produce in a turn is what follows the generation prompt of that turn, up to and
with the end-of-turn token. So the spans aren't searched for: each turn is rendered as it would be
asked for, and the row's text has to start with that. A row for which this doesn't hold is refused.
Example, `dualign` template, no_think (| marks the span):

    <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n|Hello<|im_end|>|\n
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dualign.data.conversation import Conversation, Message, Mode
from dualign.data.settings import Supervise
from dualign.errors import TemplateError

if TYPE_CHECKING:
    from dualign.data.template import ChatTemplate

Span = tuple[int, int]
TextOf = Callable[[int, bool], str]
"""The text of a conversation's first `count` messages, with the next generation prompt or without."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """The text of a row; `spans` are the (start, end) characters that are supervised."""

    text: str
    spans: tuple[Span, ...]
    mode: Mode
    source: str
    row: int


def render_row(
    template: "ChatTemplate", conversation: Conversation, supervise: Supervise
) -> Rendered:
    """The row's text with its supervised spans; TemplateError where a span can't be proven."""
    if conversation.template_kwargs.get("verbatim"):
        text = conversation.messages[0].content + template.special_tokens.get("eos_token", "")
        return _rendered(conversation, text, [(0, len(text))])
    text_of = template.texts(conversation)
    text = text_of(len(conversation.messages), False)
    if supervise == "all":
        return _rendered(conversation, text, [(0, len(text))])
    turns = _supervised(conversation, supervise)
    spans = [_span(template, conversation, turn, text_of, text) for turn in turns]
    return _rendered(conversation, text, spans)


def _rendered(conversation: Conversation, text: str, spans: Sequence[Span]) -> Rendered:
    return Rendered(
        text=text,
        spans=tuple(spans),
        mode=conversation.mode,
        source=conversation.source,
        row=conversation.row,
    )


def _supervised(conversation: Conversation, supervise: Supervise) -> list[int]:
    turns = [
        turn for turn, message in enumerate(conversation.messages) if message.role == "assistant"
    ]
    if supervise == "last":
        turns = turns[-1:]
    return [turn for turn in turns if conversation.messages[turn].train]


def _span(
    template: "ChatTemplate", conversation: Conversation, turn: int, text_of: TextOf, text: str
) -> Span:
    """The characters that turn `turn` must produce: after its generation prompt, to its
    end-of-turn.
    """
    place = f"{conversation.place}, message {turn}"
    prompt = text_of(turn, True)
    last = turn == len(conversation.messages) - 1
    upto = text if last else text_of(turn + 1, False)
    if not upto.startswith(prompt):
        found = "the turn doesn't start with the generation prompt of its mode"
        raise _unproven(template, place, found, prompt, upto)
    if not text.startswith(upto):
        found = "the template rewrites the turn once others follow"
        raise _unproven(template, place, found, upto, text)
    tail = template.turn_tail
    if not upto.endswith(tail) or len(upto) - len(tail) < len(prompt):
        found = f"the turn doesn't end with the end-of-turn {tail!r} but with {upto[-60:]!r}"
        raise TemplateError(f"{place}: template {template.name!r}: {found}.")
    _check_nothing_lost(template, place, conversation.messages[turn], upto[len(prompt) :])
    return len(prompt), len(upto) - (len(tail) - len(tail.rstrip()))


def _check_nothing_lost(template: "ChatTemplate", place: str, message: Message, span: str) -> None:
    wanted = {"trace": message.thinking or "", "answer": message.content}
    wanted |= {f"call of {name}": name for name in _called(message)}
    lost = [what for what, text in wanted.items() if text.strip() not in span]
    if lost:
        what = " and the ".join(lost)
        raise TemplateError(
            f"{place}: template {template.name!r} leaves out the {what}: the model "
            f"would be trained on {span[:200]!r}. Use a template that renders it (dualign)."
        )


def _called(message: Message) -> list[str]:
    return [str(call.get("function", call).get("name", "")) for call in message.tool_calls]


def _unproven(
    template: "ChatTemplate", place: str, found: str, expected: str, text: str
) -> TemplateError:
    common = _common_length(expected, text)
    start = max(0, common - 60)
    return TemplateError(
        f"{place}: template {template.name!r}: {found}, so what the model must "
        f"produce can't be told. Expected {expected[start : common + 80]!r}, "
        f"the row has {text[start : common + 80]!r}. "
        "Use a template that leaves earlier turns as they were (dualign), or supervise: last."
    )


def _common_length(one: str, other: str) -> int:
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)
