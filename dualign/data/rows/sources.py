"""Sources -> rows -> Conversation | PreferencePair. A row that contradicts itself is refused with
its place and a code.

`loading.py` reads the rows; what they may look like is in `shapes.py`; what they must agree on is in
`traces.py` (traces, modes), `turns.py` (order, tools) and `text_rules.py` (tokenizer, template).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dualign.data.config import SourceConfig, Supervise
from dualign.data.conversation import Conversation, Message, Mode, PreferencePair
from dualign.data.faults import Code, RowError, RowFault
from dualign.data.policies import Repair, repair_for
from dualign.data.rows.loading import load_source
from dualign.data.rows.repairs import Draft, Part, mend
from dualign.data.rows.shapes import Row, as_kwargs, as_tools, messages_of, pair_of, plain_text
from dualign.data.rows.text_rules import NO_RULES, TextRules, check_texts
from dualign.data.rows.traces import check_turns, resolve_mode, take_trace
from dualign.data.rows.turns import check_order, check_tools


def source_label(source: SourceConfig) -> str:
    """The name of a source in tables and logs: its label, or one made from path, configuration and
    split.
    """
    if source.label:
        return source.label
    stem = source.path.rstrip("/").rsplit("/", 1)[-1].split(".")[0]
    parts = [stem, source.name, None if source.split == "train" else source.split]
    return "/".join(part for part in parts if part)


def read_rows(source: SourceConfig, *, base: Path | None = None) -> Iterator[dict[str, Any]]:
    """The raw rows of a source, one by one."""
    yield from load_source(source, base=base)


def to_conversation(
    row: Row,
    *,
    source: SourceConfig,
    index: int,
    supervise: Supervise = "assistant",
    rules: TextRules = NO_RULES,
) -> Conversation:
    """The canonical form of a row, mended as the source's `on_fault` says; RowError if the row
    contradicts itself.

    With `supervise="all"` every content stays as it is, tags included, and neither traces nor the
    order of turns are checked.
    """
    label = source_label(source)
    try:
        text = plain_text(row)
        if text is not None:
            return _verbatim(row, text, source, index, supervise, rules)
        kwargs = _template_kwargs(row)
        settled = _settle(
            Draft(parts=(tuple(messages_of(row)),)),
            lambda draft: _check_conversation(draft, row, kwargs, source, supervise, rules),
            source,
            rules,
        )
        return Conversation(
            messages=settled.parts[0],
            mode=settled.mode,
            source=label,
            row=index,
            tools=kwargs.tools,
            template_kwargs=kwargs.rest,
            repairs=settled.repairs,
        )
    except RowFault as fault:
        raise _row_error(fault, label, index) from fault


def to_pair(
    row: Row, *, source: SourceConfig, index: int, rules: TextRules = NO_RULES
) -> PreferencePair:
    """One prompt with a better and a worse answer in one mode, mended as the source's `on_fault`
    says; RowError if the row contradicts itself.
    """
    label = source_label(source)
    try:
        kwargs = _template_kwargs(row)
        settled = _settle(
            Draft(parts=tuple(map(tuple, pair_of(row)))),
            lambda draft: _check_pair(draft, row, kwargs, source, rules),
            source,
            rules,
        )
        prompt, chosen, rejected = settled.parts
        return PreferencePair(
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            mode=settled.mode,
            source=label,
            row=index,
            tools=kwargs.tools,
            template_kwargs=kwargs.rest,
            repairs=settled.repairs,
        )
    except RowFault as fault:
        raise _row_error(fault, label, index) from fault


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kwargs:
    """What a row says to the template, sorted: the mode, the tools, the rest."""

    enable_thinking: bool | None
    tools: tuple[Mapping[str, Any], ...]
    rest: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Settled:
    """A draft without faults: its traces are taken, its mode is known."""

    parts: tuple[Part, ...]
    mode: Mode
    repairs: tuple[str, ...] = ()


def _template_kwargs(row: Row) -> _Kwargs:
    rest = as_kwargs(row.get("chat_template_kwargs"))
    enable_thinking = rest.pop("enable_thinking", None)
    if not isinstance(enable_thinking, bool | None):
        found = f"enable_thinking is {enable_thinking!r}: expected true or false"
        raise RowFault("unknown_mode", found)
    named = rest.pop("tools", None)
    tools = as_tools(row.get("tools") or named)
    return _Kwargs(enable_thinking=enable_thinking, tools=tools, rest=rest)


def _settle(
    draft: Draft, check: Callable[[Draft], _Settled], source: SourceConfig, rules: TextRules
) -> _Settled:
    """What `check` says of the draft, after the repairs that the source names for its faults. A
    fault that its repair can't mend stands.
    """
    done: list[tuple[Code, Repair]] = []
    while True:
        try:
            settled = check(draft)
        except RowFault as fault:
            repair = repair_for(fault.code, source.on_fault)
            if repair is None:
                raise
            mended = mend(draft, repair, fault.code, rules)
            if (fault.code, repair) in done or mended == draft:
                text = f"{fault} ({repair} can't mend it)"
                raise RowFault(fault.code, text, fault.mode) from fault
            draft, done = mended, [*done, (fault.code, repair)]
        else:
            repairs = tuple(dict.fromkeys(repair for _, repair in done))
            return replace(settled, repairs=repairs) if repairs else settled


def _mode_of(draft: Draft, messages: Part, row: Row, kwargs: _Kwargs, source: SourceConfig) -> Mode:
    return draft.mode or resolve_mode(
        row, messages, source_mode=source.mode, enable_thinking=kwargs.enable_thinking
    )


def _check_conversation(
    draft: Draft,
    row: Row,
    kwargs: _Kwargs,
    source: SourceConfig,
    supervise: Supervise,
    rules: TextRules,
) -> _Settled:
    (messages,) = draft.parts
    if supervise != "all":
        messages = tuple(_take(message) for message in messages)
    mode = _mode_of(draft, messages, row, kwargs, source)
    check_texts(messages, kwargs.rest, rules, mode)
    if supervise == "all":
        return _Settled(parts=(messages,), mode=mode)
    check_order(messages, mode)
    check_tools(messages, kwargs.tools, mode)
    turns = [turn for turn, message in enumerate(messages) if message.role == "assistant"]
    considered = turns[-1:] if supervise == "last" else turns
    trained = [turn for turn in considered if messages[turn].train]
    if not trained:
        raise RowFault("no_answer", "no assistant turn to train on", mode)
    check_turns(messages, mode, trained=trained)
    return _Settled(parts=(messages,), mode=mode)


def _check_pair(
    draft: Draft, row: Row, kwargs: _Kwargs, source: SourceConfig, rules: TextRules
) -> _Settled:
    parts = tuple(tuple(_take(message) for message in part) for part in draft.parts)
    prompt, chosen, rejected = parts
    mode = _mode_of(draft, (*prompt, *chosen), row, kwargs, source)
    _check_answers(prompt, chosen, rejected, mode)
    for answer in (chosen, rejected):
        messages = (*prompt, *answer)
        check_texts(messages, kwargs.rest, rules, mode)
        check_order(messages, mode)
        check_tools(messages, kwargs.tools, mode)
        check_turns(messages, mode, trained=[len(prompt)])
    return _Settled(parts=parts, mode=mode)


def _check_answers(prompt: Part, chosen: Part, rejected: Part, mode: Mode) -> None:
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        roles = [message.role for message in answer]
        if roles != ["assistant"]:
            said = roles or "nothing"
            found = f"{name} continues the prompt with {said}: expected one assistant turn"
            raise RowFault("not_one_answer", found, mode)
    if not any(message.role == "user" for message in prompt):
        raise RowFault("no_answer", "the prompt has no user turn", mode)
    if chosen == rejected:
        raise RowFault("identical_pair", "chosen and rejected are the same", mode)
    if bool(chosen[0].thinking) != bool(rejected[0].thinking):
        which = "chosen" if chosen[0].thinking else "rejected"
        raise RowFault("pair_modes_differ", f"only {which} has a trace: expected one mode", mode)


def _take(message: Message) -> Message:
    return take_trace(message) if message.role == "assistant" else message


def _verbatim(
    row: Row,
    text: str,
    source: SourceConfig,
    index: int,
    supervise: Supervise,
    rules: TextRules,
) -> Conversation:
    """Plain text bypasses the template: `verbatim` tells it to render nothing but the text and its
    end.
    """
    if supervise != "all":
        raise RowFault("plain_text", "plain text has no answer to train on; use supervise: all")
    message = Message(role="assistant", content=text)
    mode = resolve_mode(row, [message], source_mode=source.mode, enable_thinking=None)
    check_texts([message], {}, rules, mode)
    return Conversation(
        messages=(message,),
        mode=mode,
        source=source_label(source),
        row=index,
        template_kwargs={"verbatim": True},
    )


def _row_error(fault: RowFault, label: str, index: int) -> RowError:
    return RowError(fault.code, str(fault), source=label, row=index, mode=fault.mode)
