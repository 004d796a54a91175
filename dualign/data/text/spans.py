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
from functools import lru_cache
from typing import NamedTuple

from dualign.data.config import Supervise
from dualign.data.conversation import Conversation, Message, Mode
from dualign.data.text.checks import RenderingError, row_defects, turn_defects
from dualign.data.text.template import ChatTemplate
from dualign.data.text.trace_form import TraceForm
from dualign.data.text.turn_shapes import TextOf, TurnShape, common_prefix, unknown_tokens
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
    end: str
    """the token of the next turn with which this one ends; "" if it has its own"""


class _Texts(NamedTuple):
    """Texts of a row: the function that renders them, the one that ends with a turn, and the whole
    one.
    """

    of: TextOf
    upto: str
    whole: str


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
    try:
        return _render_rows(template, conversation, supervise)
    except TemplateError as error:
        raise _with_offer(error, template, conversation, supervise) from error


def _with_offer(
    error: TemplateError, template: ChatTemplate, conversation: Conversation, supervise: Supervise
) -> TemplateError:
    """Return the error with the name of another template of the family, if one renders the row."""
    for other in template.relatives:
        try:
            _render_rows(other, conversation, supervise)
        except TemplateError:
            continue
        message = f"{error} Or use {other.name}, TRL's for this family: it asks alike."
        code = error.code if isinstance(error, RenderingError) else "template"
        return RenderingError(message, code)
    return error


def _render_rows(
    template: ChatTemplate, conversation: Conversation, supervise: Supervise
) -> list[RenderedRow]:
    if conversation.raw is not None:
        before, after = template.document_marks
        text = before + conversation.messages[0].content
        return [_whole(conversation, text + (after if conversation.raw.ends else ""))]
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
            turn: _turn(template, conversation, turn, _Texts(text_of, alone.get(turn, text), text))
            for turn in seen
        }
        if proven:
            part = _part(conversation, end, proven)
            _check_row(template, part, text)
            last = max(turn.stop for turn in proven.values())
            ending = proven[max(proven)].end if last > len(text) else ""
            rows.append(_rendered(part, text + ending, proven, supervise))
        turns = [turn for turn in turns if turn not in proven]
        end = turns[-1] + 1 if turns else 0
    return rows[::-1]


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
    """All of the turn, its answer, or its thinking; of a turn whose trace was cut, the answer alone:
    whoever generates closes such traces, and a model that learned it would stop thinking early.
    """
    cut = conversation.messages[which].cut
    if not cut and supervise not in ("answers", "thinking"):
        return turn.start, turn.stop
    if turn.answer is None or turn.thought is None:
        raise TemplateError(
            f"{conversation.place}, message {which}: where the thinking ends can't be told: expected "
            f"the trace, {CLOSE} and the answer. Use supervise: assistant, and no thinking_budget."
        )
    if supervise == "thinking":
        return (turn.answer if cut else turn.start), turn.answer
    return turn.answer, turn.stop


def _supervised(conversation: Conversation, supervise: Supervise) -> list[int]:
    turns = [
        turn for turn, message in enumerate(conversation.messages) if message.role == "assistant"
    ]
    if supervise == "last":
        turns = turns[-1:]
    return [turn for turn in turns if conversation.messages[turn].train]


def _turn(template: ChatTemplate, conversation: Conversation, which: int, texts: _Texts) -> _Turn:
    """Return the text that message `which` must produce: all that follows its generation prompt in
    the text that ends with it, to its end of turn.
    """
    place = f"{conversation.place}, message {which}: template {template.name!r}"
    prompt, upto = texts.of(which, True), texts.upto
    if not upto.startswith(prompt):
        raise _unproven(place, prompt, upto)
    start = len(prompt)
    message, produced = conversation.messages[which], upto[start:]
    _check_nothing_lost(place, message, produced)
    shape = template.shapes.shape(conversation, which, upto)
    if not shape.end or not produced.endswith(shape.tail):
        raise TemplateError(f"{place}: {_no_end(template, shape, produced)}")
    _check_order(template, shape, produced, place)
    opening = template.shapes.opening(conversation, which, prompt, texts.of)
    headers = template.shapes.headers(conversation.mode)
    for code, what in turn_defects(message, opening, produced, headers, template.tags):
        raise RenderingError(f"{place}: {what} [{code}]", code)
    thought, answer = _thinking_ends(message, produced, shape, place, template.trace_form)
    end = _next_end(template, shape, texts, place) if shape.follows else ""
    return _Turn(
        start,
        None if thought is None else start + thought,
        None if answer is None else start + answer,
        len(upto) - len(shape.rest) + len(end),
        end,
    )


def _no_end(template: ChatTemplate, shape: TurnShape, produced: str) -> str:
    if not shape.end:
        unknown = unknown_tokens(produced[-60:], template.tokens) if template.tokens else []
        lacks = f" ({unknown[0]} is no token of this tokenizer)" if unknown else ""
        return (
            f"no token ends the turn, which ends with {produced[-60:]!r}{lacks}, so the model would "
            "never learn to stop. Use a template that closes every turn (dualign)."
        )
    return f"the turn doesn't end with {shape.tail!r} but with {produced[-60:]!r}."


def _check_order(template: ChatTemplate, shape: TurnShape, produced: str, place: str) -> None:
    """Refuse a turn that goes on where the model would stop, or that calls before it speaks."""
    inside = produced[: len(produced) - len(shape.tail)]
    early = [end for end in dict.fromkeys((*template.ends, shape.token)) if end in inside]
    if early:
        raise TemplateError(
            f"{place}: the turn goes on after {early[0]!r}, which ends a turn, so the model would "
            f"stop there: {produced[:200]!r}. Use a template with one end in each turn (dualign)."
        )
    if shape.calls_first:
        raise TemplateError(
            f"{place} writes the turn's text after its calls: the model would be trained on "
            f"{produced[:200]!r}. Use a template that speaks first (dualign), or leave the text out."
        )


def _next_end(template: ChatTemplate, shape: TurnShape, texts: _Texts, place: str) -> str:
    """Return the token of the next turn that ends this one, with the space before it."""
    ahead = texts.whole[len(texts.upto) :]
    end = template.shapes.next_token(ahead) if ahead else shape.end
    if end.strip() not in (*template.ends, shape.token):
        raise TemplateError(
            f"{place}: a turn ends where the next begins, and {ahead[:40]!r} begins with no token "
            f"that ends one. Expected one of {', '.join(template.ends)}."
        )
    return end


def _thinking_ends(
    message: Message, produced: str, shape: TurnShape, place: str, form: TraceForm
) -> tuple[int | None, int | None]:
    """Return the ends of the trace and of its closing in the text of a turn."""
    trace = (message.thinking or "").strip()
    if not trace:
        return 0, 0
    # Not before the head, which may hold the words of a short trace.
    start = produced.find(trace, len(shape.head) if produced.startswith(shape.head) else 0)
    head = produced[:start].strip()
    if form == "content" and head not in ("", OPEN):
        raise TemplateError(
            f"{place}: the template has no place for a trace, and writes it into the answer, after "
            f"{head!r}. Use a template that renders traces (dualign)."
        )
    closing = shape.closing.strip()
    match = _closing(closing).match(produced, start + len(trace)) if closing else None
    if head not in ("", OPEN, shape.head.strip()) or match is None:
        return None, None
    return start + len(trace), match.end()


@lru_cache(maxsize=64)
def _closing(text: str) -> re.Pattern[str]:
    """Match what closes a trace. Whole lines of white space belong to it, the indent of the first
    line to the answer.
    """
    return re.compile(rf"\s*{re.escape(text)}(?:[^\S\n]*\n)*")


def _check_nothing_lost(place: str, message: Message, span: str) -> None:
    trace = (message.thinking or "").strip()
    words = [("answer", message.content.strip())]
    words += [(f"call of {name}", name.strip()) for name in _called(message)]
    lost = [what for what, text in (("trace", trace), *words) if text not in span]
    if lost:
        what = " and the ".join(lost)
        raise TemplateError(
            f"{place} leaves out the {what}: the model "
            f"would be trained on {span[:200]!r}. Use a template that renders it (dualign)."
        )
    stop = span.find(trace) + len(trace)
    late = [what for what, text in words if span.find(text, stop) < 0]
    if late:
        raise TemplateError(
            f"{place} writes the trace after the {' and the '.join(late)}: the model would be "
            f"trained on {span[:200]!r}. Use a template that thinks first (dualign)."
        )


def _called(message: Message) -> list[str]:
    return [str(call.get("function", call).get("name", "")) for call in message.tool_calls]


def _unproven(place: str, expected: str, text: str) -> TemplateError:
    common = len(common_prefix(expected, text))
    start = expected.rfind("<", max(0, common - 40), common)
    if start >= 0 and ">" not in expected[start:common]:
        common = start  # no cut inside a token
    return TemplateError(
        f"{place}: the turn doesn't start with the generation prompt of "
        "its mode, so what the model must produce can't be told. After "
        f"{expected[max(0, common - 40) : common]!r} the prompt goes on with "
        f"{expected[common : common + 40]!r}, the row with {text[common : common + 40]!r}. "
        "Use a template that starts a turn as it asks for it (dualign)."
    )
