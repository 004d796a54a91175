"""Named repairs for inconsistent rows. Each is a pure function ParsedRow -> ParsedRow."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dualign.data.conversation import Message, Mode
from dualign.data.faults import Code, RowFault
from dualign.data.policies import Repair
from dualign.data.rows.foreign_traces import with_think_block
from dualign.data.rows.shapes import Part, Parts
from dualign.data.rows.text_rules import TextRules, trim_control_tokens
from dualign.data.rows.traces import take_trace, without_flags
from dualign.data.text.system_role import system_into_user
from dualign.data.think_tags import CLOSE, OPEN


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedRow:
    """A row before it is checked. `mode` is the decision of a repair, which beats the row's own
    words.
    """

    parts: Parts
    mode: Mode | None = None


def apply_repair(row: ParsedRow, repair: Repair, fault: RowFault, rules: TextRules) -> ParsedRow:
    """Return the row after a repair of a fault; an equal row if there is nothing to do."""
    match repair:
        case "as_think":
            return _as_mode(row, "think", rules)
        case "as_no_think":
            return _as_mode(row, "no_think", rules)
        case "skip_turn":
            return _each_answer(row, lambda message: _skip_turn(message, fault.code))
        case "trim_tokens":
            return _each_part(
                row, lambda part: tuple(_trim_tokens(message, rules) for message in part)
            )
        case "strip_thinking" | "open_think" | "read_trace":
            return _each_answer(row, _OF_ANSWERS[repair])
        case "join_turns":
            return _each_part(row, _join_turns)
        case "drop_first_turns":
            return _drop_first_turns(row)
        case "system_into_user":
            return _system_into_user(row, fault)


def _as_mode(row: ParsedRow, mode: Mode, rules: TextRules) -> ParsedRow:
    """Remove the flags of the other mode, and what else switches to it; `mode` beats the row's and
    the source's mode.
    """
    parts = tuple(_switched(without_flags(part, mode), mode, rules) for part in row.parts)
    return ParsedRow(parts=parts, mode=mode)


def _switched(part: Part, mode: Mode, rules: TextRules) -> Part:
    if rules.switch is None or not part or part[0].role != "system":
        return part
    head = replace(part[0], content=rules.switch.without_other(part[0].content, mode))
    return (head, *part[1:])


def _drop_first_turns(row: ParsedRow) -> ParsedRow:
    """Drop the turns before the first user turn, except the system message."""
    first, *rest = row.parts
    start = next((turn for turn, message in enumerate(first) if message.role == "user"), len(first))
    system = tuple(message for message in first[:1] if message.role == "system")
    return replace(row, parts=((*system, *first[start:]), *rest))


def _system_into_user(row: ParsedRow, fault: RowFault) -> ParsedRow:
    """The mode stays what it was: a flag of the system message is part of a user turn then."""
    first, *rest = row.parts
    parts = (system_into_user(first), *rest)
    return row if parts == row.parts else ParsedRow(parts=parts, mode=row.mode or fault.mode)


def _each_part(row: ParsedRow, change: Callable[[Part], Part]) -> ParsedRow:
    return replace(row, parts=tuple(change(part) for part in row.parts))


def _each_answer(row: ParsedRow, change: Callable[[Message], Message]) -> ParsedRow:
    """Return the row with its assistant turns changed."""

    def changed(part: Part) -> Part:
        return tuple(
            change(message) if message.role == "assistant" else message for message in part
        )

    return _each_part(row, changed)


def _strip_thinking(message: Message) -> Message:
    return replace(take_trace(message), thinking=None)


def _open_think(message: Message) -> Message:
    """`why</think>yes` -> `<think>\\nwhy</think>yes`: models whose prompt holds the opening tag
    write the first.
    """
    text = message.content
    unopened = OPEN not in text and text.count(CLOSE) == 1
    return replace(message, content=f"{OPEN}\n{text.lstrip()}") if unopened else message


def _read_trace(message: Message) -> Message:
    return replace(message, content=with_think_block(message.content))


def _skip_turn(message: Message, code: Code) -> Message:
    """Exclude the turn from the loss if it has the fault: an empty answer, or else a missing trace."""
    taken = take_trace(message)
    is_empty = not taken.content.strip() and not taken.tool_calls
    is_faulty = is_empty if code == "empty_answer" else not taken.thinking
    return replace(message, train=False) if is_faulty else message


def _trim_tokens(message: Message, rules: TextRules) -> Message:
    if rules.control is None:
        return message
    return replace(message, content=trim_control_tokens(message.content, rules.control))


def _join_turns(part: Part) -> Part:
    joined: list[Message] = []
    for message in part:
        if joined and _can_join(joined[-1], message):
            last = joined.pop()
            content = f"{last.content}\n\n{message.content}".strip()
            message = replace(last, content=content, tool_calls=message.tool_calls)
        joined.append(message)
    return tuple(joined)


def _can_join(last: Message, message: Message) -> bool:
    """A turn with a trace of its own can't be joined, nor a trained turn with an untrained one."""
    same = last.role == message.role != "tool" and last.train == message.train
    return same and not message.thinking and OPEN not in message.content and not last.tool_calls


_OF_ANSWERS: Mapping[Repair, Callable[[Message], Message]] = {
    "strip_thinking": _strip_thinking,
    "open_think": _open_think,
    "read_trace": _read_trace,
}
