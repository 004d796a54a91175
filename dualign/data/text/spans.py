"""Conversation -> RenderedRow: the text of a row, and the parts of it that the model has to
produce.

A model must produce the text after the generation prompt of a turn, up to and including the
end-of-turn token. So the spans aren't searched for: each turn's generation prompt is rendered, and
the row's text has to start with it. A row for which this doesn't hold is refused.
Example, `dualign` template, no_think (| marks the span):

    <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n|Hello<|im_end|>|\n
"""

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

from dualign.data.config import Supervise
from dualign.data.conversation import Conversation, Message, Mode
from dualign.data.text.checks import RenderingError, row_defects, turn_defects
from dualign.data.text.template import ChatTemplate, TextOf
from dualign.data.think_tags import CLOSE, OPEN
from dualign.errors import TemplateError

Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedRow:
    """The text of a row; `spans` are the (start, end) characters that are supervised, `traces`
    those of the thinking in supervised turns, up to the answer. `conversation` is what was
    rendered.
    """

    text: str
    spans: tuple[Span, ...]
    mode: Mode
    source: str
    row: int
    traces: tuple[Span, ...] = ()
    conversation: Conversation | None = None


class _Turn(NamedTuple):
    """Characters of a turn that the model produces. `thought` is where the trace ends, `answer`
    where its closing does; both are `start` without a trace, and None where they can't be told.
    """

    start: int
    thought: int | None
    answer: int | None
    stop: int


def render_rows(
    template: ChatTemplate, conversation: Conversation, supervise: Supervise
) -> list[RenderedRow]:
    """The row as the model is to see it, with its supervised spans; TemplateError where a span
    can't be proven.

    Where the template rewrites turns once others follow (Qwen3 drops old thoughts), the row becomes
    several: each holds the conversation up to a turn, and supervises the turns that look in it as
    they did when they were asked for.
    """
    template = template.for_tools(conversation.tools)
    if conversation.template_kwargs.get("verbatim"):
        text = conversation.messages[0].content + template.special_tokens.get("eos_token", "")
        return [_whole(conversation, text)]
    text_of = template.texts(conversation)
    if supervise == "all":
        text = text_of(len(conversation.messages), False)
        _check_row(template, conversation, text)
        return [_whole(conversation, text)]
    turns = _supervised(conversation, supervise)
    if not turns:
        return [_rendered(conversation, text_of(len(conversation.messages), False), {}, supervise)]
    rows: list[RenderedRow] = []
    end = len(conversation.messages)
    alone = {turn: text_of(turn + 1, False) for turn in turns if turn + 1 < end}
    while turns:
        text = alone[end - 1] if end - 1 in alone else text_of(end, False)
        seen = [turn for turn in turns if text.startswith(alone.get(turn, text))]
        proven = {
            turn: _turn(template, conversation, turn, text_of, alone.get(turn, text))
            for turn in seen
        }
        if proven:
            part = _part(conversation, end, proven)
            _check_row(template, part, text)
            rows.append(_rendered(part, text, proven, supervise))
        turns = [turn for turn in turns if turn not in proven]
        end = turns[-1] + 1 if turns else 0
    return rows[::-1]


def render_row(
    template: ChatTemplate, conversation: Conversation, supervise: Supervise
) -> RenderedRow:
    """The one row of a conversation; TemplateError where the template makes it several."""
    rows = render_rows(template, conversation, supervise)
    if len(rows) > 1:
        raise TemplateError(
            f"{conversation.place}: template {template.name!r} rewrites turns once others follow, so "
            f"that the supervised turns make {len(rows)} rows. Expected one: use supervise: last."
        )
    return rows[0]


def _check_row(template: ChatTemplate, conversation: Conversation, text: str) -> None:
    for code, what in row_defects(conversation, text):
        raise RenderingError(
            f"{conversation.place}: template {template.name!r}: {what} [{code}]", code
        )


def _whole(conversation: Conversation, text: str) -> RenderedRow:
    rendered = _rendered(conversation, text, {}, "all")
    return replace(rendered, spans=((0, len(text)),))


def _rendered(
    conversation: Conversation, text: str, turns: dict[int, _Turn], supervise: Supervise
) -> RenderedRow:
    marked = [
        (_supervised_part(conversation, which, turn, supervise), turn)
        for which, turn in turns.items()
    ]
    return RenderedRow(
        text=text,
        spans=tuple(span for span, _ in marked if span[0] < span[1]),
        mode=conversation.mode,
        source=conversation.source,
        row=conversation.row,
        traces=tuple(
            (turn.start, turn.stop if turn.answer is None else turn.answer)
            for turn in turns.values()
            if turn.answer != turn.start
        ),
        conversation=conversation,
    )


def _part(conversation: Conversation, end: int, proven: dict[int, _Turn]) -> Conversation:
    """The conversation's first `end` messages, training on the proven turns alone."""
    if end == len(conversation.messages) and list(proven) == _supervised(conversation, "assistant"):
        return conversation
    messages = [
        replace(message, train=turn in proven) if message.role == "assistant" else message
        for turn, message in enumerate(conversation.messages[:end])
    ]
    return replace(conversation, messages=tuple(messages))


def _supervised_part(
    conversation: Conversation, which: int, turn: _Turn, supervise: Supervise
) -> Span:
    """All of the turn, its answer, or its thinking; of a trace that was cut, only what follows it."""
    cut = conversation.messages[which].cut
    if not cut and supervise not in ("answers", "thinking"):
        return turn.start, turn.stop
    if turn.answer is None or turn.thought is None:
        raise TemplateError(
            f"{conversation.place}, message {which}: where the thinking ends can't be told: expected "
            f"the trace, {CLOSE} and the answer. Use supervise: assistant, and no thinking_budget."
        )
    start = turn.thought if cut else turn.start
    match supervise:
        case "answers":
            return turn.answer, turn.stop
        case "thinking":
            return start, turn.answer
        case _:
            return start, turn.stop


def _supervised(conversation: Conversation, supervise: Supervise) -> list[int]:
    turns = [
        turn for turn, message in enumerate(conversation.messages) if message.role == "assistant"
    ]
    if supervise == "last":
        turns = turns[-1:]
    return [turn for turn in turns if conversation.messages[turn].train]


def _turn(
    template: ChatTemplate, conversation: Conversation, which: int, text_of: TextOf, upto: str
) -> _Turn:
    """Return the text that message `which` must produce: all that follows its generation prompt in
    `upto`, the text that ends with it, to its end-of-turn.
    """
    prompt = text_of(which, True)
    place = f"{conversation.place}, message {which}"
    if not upto.startswith(prompt):
        raise _unproven(template, place, prompt, upto)
    tail = template.turn_tail
    start = len(prompt)
    if not upto.endswith(tail) or len(upto) - len(tail) < start:
        reason = f"the turn doesn't end with the end-of-turn {tail!r} but with {upto[-60:]!r}"
        raise TemplateError(f"{place}: template {template.name!r}: {reason}.")
    message, produced = conversation.messages[which], upto[start:]
    _check_nothing_lost(template, place, message, produced)
    opening = template.opening(conversation, which, prompt, text_of)
    for code, what in turn_defects(message, opening, produced):
        raise RenderingError(f"{place}: template {template.name!r}: {what} [{code}]", code)
    thought, answer = _thinking_ends(message, produced)
    return _Turn(
        start,
        None if thought is None else start + thought,
        None if answer is None else start + answer,
        len(upto) - (len(tail) - len(tail.rstrip())),
    )


_CLOSING = re.compile(rf"\s*{re.escape(CLOSE)}\s*")


def _thinking_ends(message: Message, produced: str) -> tuple[int | None, int | None]:
    """Return the ends of the trace and of its closing tag in the text of a turn."""
    trace = (message.thinking or "").strip()
    if not trace:
        return 0, 0
    start = produced.find(trace)
    closing = _CLOSING.match(produced, start + len(trace))
    if produced[:start].strip() not in ("", OPEN) or closing is None:
        return None, None
    return start + len(trace), closing.end()


def _check_nothing_lost(template: ChatTemplate, place: str, message: Message, span: str) -> None:
    expected = {"trace": message.thinking or "", "answer": message.content}
    expected |= {f"call of {name}": name for name in _called(message)}
    lost = [what for what, text in expected.items() if text.strip() not in span]
    if lost:
        what = " and the ".join(lost)
        raise TemplateError(
            f"{place}: template {template.name!r} leaves out the {what}: the model "
            f"would be trained on {span[:200]!r}. Use a template that renders it (dualign)."
        )


def _called(message: Message) -> list[str]:
    return [str(call.get("function", call).get("name", "")) for call in message.tool_calls]


def _unproven(template: ChatTemplate, place: str, expected: str, text: str) -> TemplateError:
    common = _common_length(expected, text)
    start = max(0, common - 60)
    return TemplateError(
        f"{place}: template {template.name!r}: the turn doesn't start with the generation prompt of "
        "its mode, so what the model must produce can't be told. Expected "
        f"{expected[start : common + 80]!r}, the row has {text[start : common + 80]!r}. "
        "Use a template that starts a turn as it asks for it (dualign)."
    )


def _common_length(first: str, second: str) -> int:
    length = min(len(first), len(second))
    return next((i for i in range(length) if first[i] != second[i]), length)
