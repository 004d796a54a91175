"""Named repairs of rows that contradict themselves: each is a pure function on a draft."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from dualign.data.conversation import Message, Mode
from dualign.data.faults import Code
from dualign.data.modes import CLOSE, OPEN
from dualign.data.policies import Repair
from dualign.data.rows.text_rules import TextRules, trimmed
from dualign.data.rows.traces import take_trace, without_flags

Part = tuple[Message, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A row before it is known to be right. `parts` are (messages,), or (prompt, chosen, rejected)
    of a pair; `mode` is what a repair decided, whatever else the row says.
    """

    parts: tuple[Part, ...]
    mode: Mode | None = None


def mend(draft: Draft, repair: Repair, code: Code, rules: TextRules) -> Draft:
    """The draft after a repair; the same draft where the repair has nothing to do."""
    if repair in ("as_think", "as_no_think"):
        return _as_mode(draft, "think" if repair == "as_think" else "no_think")
    if repair == "skip_turn":
        return _each(draft, lambda message: _skipped(message, code))
    if repair == "trim_tokens":
        parts = (tuple(_trimmed(one, rules) for one in part) for part in draft.parts)
        return replace(draft, parts=tuple(parts))
    return _PLAIN[repair](draft)


def _as_mode(draft: Draft, mode: Mode) -> Draft:
    """Every other word on the mode goes: flags that say something else, and what the source says."""
    return Draft(parts=tuple(without_flags(part, mode) for part in draft.parts), mode=mode)


def _strip_thinking(draft: Draft) -> Draft:
    return _each(draft, lambda message: replace(take_trace(message), thinking=None))


def _open_think(draft: Draft) -> Draft:
    """`why</think>yes`, as models write whose prompt holds the opening tag."""

    def opened(message: Message) -> Message:
        text = message.content
        lonely = OPEN not in text and text.count(CLOSE) == 1
        return replace(message, content=f"{OPEN}\n{text.lstrip()}") if lonely else message

    return _each(draft, opened)


def _join_turns(draft: Draft) -> Draft:
    return replace(draft, parts=tuple(_joined(part) for part in draft.parts))


def _drop_first_turns(draft: Draft) -> Draft:
    """What stands before the first user turn goes, except the system message."""
    first, *rest = draft.parts
    start = next((turn for turn, message in enumerate(first) if message.role == "user"), len(first))
    system = tuple(message for message in first[:1] if message.role == "system")
    return replace(draft, parts=((*system, *first[start:]), *rest))


_PLAIN: dict[str, Callable[[Draft], Draft]] = {
    "drop_first_turns": _drop_first_turns,
    "join_turns": _join_turns,
    "open_think": _open_think,
    "strip_thinking": _strip_thinking,
}


def _each(draft: Draft, change: Callable[[Message], Message]) -> Draft:
    """The draft with its assistant's turns changed."""
    parts = tuple(
        tuple(change(one) if one.role == "assistant" else one for one in part)
        for part in draft.parts
    )
    return replace(draft, parts=parts)


def _skipped(message: Message, code: Code) -> Message:
    taken = take_trace(message)
    empty = not taken.content.strip() and not taken.tool_calls
    wanting = empty if code == "empty_answer" else not taken.thinking
    return replace(message, train=False) if wanting else message


def _trimmed(message: Message, rules: TextRules) -> Message:
    if rules.control is None:
        return message
    return replace(message, content=trimmed(message.content, rules.control))


def _joined(part: Part) -> Part:
    made: list[Message] = []
    for message in part:
        if made and _can_join(made[-1], message):
            last = made.pop()
            content = f"{last.content}\n\n{message.content}".strip()
            message = replace(last, content=content, tool_calls=message.tool_calls)
        made.append(message)
    return tuple(made)


def _can_join(last: Message, message: Message) -> bool:
    """Not a turn with a trace of its own, or one that isn't trained on with one that is."""
    same = last.role == message.role != "tool" and last.train == message.train
    return same and not message.thinking and OPEN not in message.content and not last.tool_calls
