"""Raw rows of a source -> Conversation | PreferencePair | RatedAnswer. An inconsistent row is refused with
its place and a code.

`loading.py` reads the rows and `shapes.py` parses them. They are checked in `traces.py` (traces,
modes), `turns.py` (order, tools) and `text_rules.py` (tokenizer, template).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dualign.data.config import SourceConfig, Supervise
from dualign.data.conversation import Conversation, Mode, PreferencePair, RatedAnswer, RawText
from dualign.data.faults import Code, RowError, RowFault
from dualign.data.policies import Repair, repair_for
from dualign.data.rows.calls import as_kwargs, as_tools
from dualign.data.rows.columns import mapped_row
from dualign.data.rows.contents import check_media
from dualign.data.rows.kinds import check_answered, check_verdict, misplaced_row, verdict_of
from dualign.data.rows.loss_flags import check_row_weight
from dualign.data.rows.repairs import ParsedRow, apply_repair
from dualign.data.rows.shapes import (
    ENDS,
    FAULT,
    PLACE,
    Part,
    Parts,
    Row,
    RowShape,
    rated_parts,
    shape_of,
)
from dualign.data.rows.text_rules import NO_RULES, TextRules, check_texts
from dualign.data.rows.traces import check_turns, resolve_mode, take_trace
from dualign.data.rows.turns import check_order, check_placeholders, check_tools
from dualign.errors import excerpt

_PLAIN_TEXT = (
    "plain text has no answer to train on. If it is raw text, all of which is to be learned, say so: "
    "columns: {text: NAME} for this source, or supervise: all for the stage"
)


def source_label(source: SourceConfig) -> str:
    """Return the name of a source in tables and logs: its label, or one made from path,
    configuration and split.
    """
    if source.label:
        return source.label
    stem = source.path.rstrip("/").rsplit("/", 1)[-1].split(".")[0]
    parts = [stem, source.name, None if source.split == "train" else source.split]
    return "/".join(part for part in parts if part)


def to_conversation(
    row: Row,
    *,
    source: SourceConfig,
    index: int,
    supervise: Supervise = "assistant",
    rules: TextRules = NO_RULES,
) -> Conversation:
    """Return the canonical form of a row, repaired by the source's `on_fault`.

    With `supervise="all"` every content stays as it is, tags included, and neither traces nor the
    order of turns are checked.

    Raises:
        RowError: the row is inconsistent.
    """
    label = source_label(source)
    try:
        row = mapped_row(row, source.columns, pairs=False)
        _check_columns(row)
        shape = shape_of(row, pairs=False)
        if shape is not None and shape.verbatim:
            return _verbatim(row, shape, source, index, supervise, rules)
        kwargs = _template_kwargs(row)
        if shape is None:
            raise misplaced_row(row, pairs=False)
        check_verdict(row)
        checked = _repair_and_check(
            ParsedRow(parts=shape.parse(row)),
            lambda parsed: _check_conversation(parsed, row, kwargs, source, supervise, rules),
            source,
            rules,
        )
        return Conversation(
            messages=checked.parts[0],
            mode=checked.mode,
            source=label,
            row=index,
            tools=kwargs.tools,
            template_kwargs=kwargs.rest,
            repairs=checked.repairs,
        )
    except RowFault as fault:
        raise _row_error(fault, label, index) from fault


def to_pair(
    row: Row, *, source: SourceConfig, index: int, rules: TextRules = NO_RULES
) -> PreferencePair:
    """Return one prompt with a better and a worse answer in one mode, repaired by the source's
    `on_fault`; RowError if the row is inconsistent.
    """
    label = source_label(source)
    try:
        row = mapped_row(row, source.columns, pairs=True)
        _check_columns(row)
        kwargs = _template_kwargs(row)
        shape = shape_of(row, pairs=True)
        if shape is None:
            raise misplaced_row(row, pairs=True)
        checked = _repair_and_check(
            ParsedRow(parts=shape.parse(row)),
            lambda parsed: _check_pair(parsed, row, kwargs, source, rules),
            source,
            rules,
        )
        prompt, chosen, rejected = checked.parts
        return PreferencePair(
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            mode=checked.mode,
            source=label,
            row=index,
            tools=kwargs.tools,
            template_kwargs=kwargs.rest,
            repairs=checked.repairs,
        )
    except RowFault as fault:
        raise _row_error(fault, label, index) from fault


def to_rated(
    row: Row, *, source: SourceConfig, index: int, rules: TextRules = NO_RULES
) -> RatedAnswer:
    """Return a conversation's prompt and last answer with its label, repaired by the source's `on_fault`;
    RowError if the row is inconsistent.
    """
    label = source_label(source)
    try:
        row = mapped_row(row, source.columns, pairs=False)
        _check_columns(row)
        kwargs = _template_kwargs(row)
        shape = shape_of(row, pairs=False)
        if shape is None:
            raise misplaced_row(row, pairs=False)
        if shape.verbatim:
            raise RowFault("plain_text", "plain text has no prompt, and no answer with a verdict")
        desirable = verdict_of(row)
        checked = _repair_and_check(
            ParsedRow(parts=rated_parts(row, shape)),
            lambda parsed: _check_rated(parsed, row, kwargs, source, rules),
            source,
            rules,
        )
        prompt, answer = checked.parts
        return RatedAnswer(
            prompt=prompt,
            answer=answer,
            desirable=desirable,
            mode=checked.mode,
            source=label,
            row=index,
            tools=kwargs.tools,
            template_kwargs=kwargs.rest,
            repairs=checked.repairs,
        )
    except RowFault as fault:
        raise _row_error(fault, label, index) from fault


@dataclass(frozen=True, kw_only=True, slots=True)
class _TemplateKwargs:
    """The template variables of a row, sorted: the mode, the tools, the rest."""

    enable_thinking: bool | None
    tools: tuple[Mapping[str, Any], ...]
    rest: Mapping[str, Any]

    @property
    def texts(self) -> Mapping[str, Any]:
        """All that holds texts which a template prints."""
        return {**self.rest, "tools": self.tools} if self.tools else self.rest


@dataclass(frozen=True, kw_only=True, slots=True)
class _CheckedRow:
    """A row without faults: its traces are in `thinking`, its mode is known."""

    parts: Parts
    mode: Mode
    repairs: tuple[str, ...] = ()


def _check_columns(row: Row) -> None:
    """Raise RowFault for columns that change what the texts mean, or whether they are learned."""
    check_media(row, "the row")
    check_row_weight(row)


def _template_kwargs(row: Row) -> _TemplateKwargs:
    rest = as_kwargs(row.get("chat_template_kwargs"))
    enable_thinking = rest.pop("enable_thinking", None)
    if not isinstance(enable_thinking, bool | None):
        what = f"enable_thinking is {excerpt(enable_thinking)}: expected true or false"
        raise RowFault("unknown_mode", what)
    tools_in_kwargs = rest.pop("tools", None)
    tools = as_tools(row.get("tools") or tools_in_kwargs, functions=row.get("functions"))
    return _TemplateKwargs(enable_thinking=enable_thinking, tools=tools, rest=rest)


def _repair_and_check(
    parsed: ParsedRow,
    check: Callable[[ParsedRow], _CheckedRow],
    source: SourceConfig,
    rules: TextRules,
) -> _CheckedRow:
    """Return the checked row, after the repairs that the source names for its faults.

    Raises:
        RowFault: a fault without a repair, or one that its repair can't mend.
    """
    done: list[tuple[Code, Repair]] = []
    while True:
        try:
            checked = check(parsed)
        except RowFault as fault:
            repair = repair_for(fault.code, source.on_fault)
            if repair is None:
                raise
            repaired = apply_repair(parsed, repair, fault, rules)
            if (fault.code, repair) in done or repaired == parsed:
                text = f"{fault} ({repair} can't mend it)"
                raise RowFault(fault.code, text, fault.mode) from fault
            parsed, done = repaired, [*done, (fault.code, repair)]
        else:
            repairs = tuple(dict.fromkeys(repair for _, repair in done))
            return replace(checked, repairs=repairs) if repairs else checked


def _mode_of(
    parsed: ParsedRow,
    messages: Part,
    row: Row,
    kwargs: _TemplateKwargs,
    source: SourceConfig,
    rules: TextRules,
) -> Mode:
    if parsed.mode:
        return parsed.mode
    system = messages[0].content if messages and messages[0].role == "system" else ""
    return resolve_mode(
        row,
        messages,
        source_mode=source.mode,
        enable_thinking=kwargs.enable_thinking,
        declared=rules.switch.declared(system, kwargs.rest)
        if rules.switch and (system or kwargs.rest)
        else {},
    )


def _check_conversation(
    parsed: ParsedRow,
    row: Row,
    kwargs: _TemplateKwargs,
    source: SourceConfig,
    supervise: Supervise,
    rules: TextRules,
) -> _CheckedRow:
    (messages,) = parsed.parts
    if supervise != "all":
        messages = _take_traces(messages)
    mode = _mode_of(parsed, messages, row, kwargs, source, rules)
    check_texts(messages, kwargs.texts, rules, mode)
    if supervise == "all":
        return _CheckedRow(parts=(messages,), mode=mode)
    check_answered(row, messages)
    check_placeholders(messages, mode)
    check_order(messages, mode)
    check_tools(messages, kwargs.tools, mode)
    turns = [turn for turn, message in enumerate(messages) if message.role == "assistant"]
    considered = turns[-1:] if supervise == "last" else turns
    trained = [turn for turn in considered if messages[turn].train]
    if not trained:
        raise RowFault("no_answer", "no assistant turn to train on", mode)
    check_turns(messages, mode, trained=trained)
    return _CheckedRow(parts=(messages,), mode=mode)


def _check_pair(
    parsed: ParsedRow, row: Row, kwargs: _TemplateKwargs, source: SourceConfig, rules: TextRules
) -> _CheckedRow:
    parts = tuple(_take_traces(part) for part in parsed.parts)
    prompt, chosen, rejected = parts
    mode = _mode_of(parsed, (*prompt, *chosen), row, kwargs, source, rules)
    _check_answers(prompt, {"chosen": chosen, "rejected": rejected}, mode)
    _check_pair_of(chosen, rejected, mode)
    check_placeholders(prompt, mode)
    for answer in (chosen, rejected):
        _check_continued(prompt, answer, kwargs, rules, mode)
    return _CheckedRow(parts=parts, mode=mode)


def _check_rated(
    parsed: ParsedRow, row: Row, kwargs: _TemplateKwargs, source: SourceConfig, rules: TextRules
) -> _CheckedRow:
    prompt, answer = parts = tuple(_take_traces(part) for part in parsed.parts)
    mode = _mode_of(parsed, (*prompt, *answer), row, kwargs, source, rules)
    check_answered(row, (*prompt, *answer))
    _check_answers(prompt, {"the answer": answer}, mode)
    check_placeholders(prompt, mode)
    _check_continued(prompt, answer, kwargs, rules, mode)
    return _CheckedRow(parts=parts, mode=mode)


def _check_continued(
    prompt: Part, answer: Part, kwargs: _TemplateKwargs, rules: TextRules, mode: Mode
) -> None:
    messages = (*prompt, *answer)
    check_texts(messages, kwargs.texts, rules, mode)
    check_order(messages, mode)
    check_tools(messages, kwargs.tools, mode)
    check_turns(messages, mode, trained=[len(prompt)])


def _check_answers(prompt: Part, answers: Mapping[str, Part], mode: Mode) -> None:
    for name, answer in answers.items():
        roles = [message.role for message in answer]
        if roles != ["assistant"]:
            what = f"{name} continues the prompt with {roles or 'nothing'}: expected one assistant turn"
            raise RowFault("not_one_answer", what, mode)
    if not any(message.role == "user" for message in prompt):
        where = "chosen and rejected" if len(answers) > 1 else "the messages"
        what = (
            f"the prompt has no user turn: expected one in {where}, or in a column such as "
            "prompt or messages; `columns: {prompt: NAME}` of the source names another one"
        )
        raise RowFault("no_answer", what, mode)


def _check_pair_of(chosen: Part, rejected: Part, mode: Mode) -> None:
    if chosen == rejected:
        raise RowFault("identical_pair", "chosen and rejected are the same", mode)
    if bool(chosen[0].thinking) != bool(rejected[0].thinking):
        name = "chosen" if chosen[0].thinking else "rejected"
        raise RowFault("pair_modes_differ", f"only {name} has a trace: expected one mode", mode)


def _take_traces(messages: Part) -> Part:
    return tuple(
        take_trace(message) if message.role == "assistant" else message for message in messages
    )


def _verbatim(
    row: Row,
    shape: RowShape,
    source: SourceConfig,
    index: int,
    supervise: Supervise,
    rules: TextRules,
) -> Conversation:
    """Return raw text, which bypasses the template. All of it is learned: a document, a row of a stage
    with `supervise: all`, or one whose source says by `columns` that it is text.
    """
    place = row.get(PLACE)
    if place is not None and row.get(FAULT):
        raise RowFault(*row[FAULT].split(" ", 1))
    if supervise != "all" and place is None and "text" not in source.columns:
        raise RowFault("plain_text", _PLAIN_TEXT)
    (messages,) = shape.parse(row)
    mode = resolve_mode(row, messages, source_mode=source.mode, enable_thinking=None)
    has_mode = source.mode != "row" or row.get("mode") is not None
    try:
        check_texts(messages, {}, rules, mode if has_mode else None)
    except RowFault as fault:
        raise RowFault(
            fault.code, f"{place}: {fault}" if place else str(fault), fault.mode
        ) from fault
    return Conversation(
        messages=messages,
        mode=mode,
        source=source_label(source),
        row=index,
        raw=RawText(ends=row.get(ENDS) is not False, has_mode=has_mode),
    )


def _row_error(fault: RowFault, label: str, index: int) -> RowError:
    return RowError(fault.code, str(fault), source=label, row=index, mode=fault.mode)
