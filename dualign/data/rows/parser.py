"""Parse the rows of one source, and store parsed rows between two passes over them.

With dedup or decontaminate there are two passes: screening parses the rows, and tokenizing reads
the parsed ones.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dualign.data.config import SourceConfig, Supervise
from dualign.data.conversation import Conversation, Message, PreferencePair
from dualign.data.faults import RowError
from dualign.data.rows.shapes import Part, Row
from dualign.data.rows.sources import source_label, to_conversation, to_pair
from dualign.data.rows.text_rules import NO_RULES, TextRules

Parsed = Conversation | PreferencePair


@dataclass(frozen=True, kw_only=True, slots=True)
class RowParser:
    """Raw row -> Conversation, or PreferencePair with `pairs`; RowError if it is inconsistent."""

    source: SourceConfig
    supervise: Supervise
    pairs: bool
    rules: TextRules

    def __call__(self, row: Row, index: int) -> Parsed:
        if self.pairs:
            return to_pair(row, source=self.source, index=index, rules=self.rules)
        return to_conversation(
            row, source=self.source, index=index, supervise=self.supervise, rules=self.rules
        )

    def without_rules(self) -> "RowParser":
        """Return the parser that takes every text as it is."""
        return replace(self, rules=NO_RULES)


def parts_of(parsed: Parsed) -> tuple[Part, ...]:
    """Return (messages,), or (prompt, chosen, rejected) of a pair."""
    if isinstance(parsed, Conversation):
        return (parsed.messages,)
    return parsed.prompt, parsed.chosen, parsed.rejected


def dump_row(parsed: Parsed | RowError) -> bytes:
    """Serialize a parsed row, or its fault. As plain tuples it takes a fifth of pickle's time."""
    if isinstance(parsed, RowError):
        return pickle.dumps(parsed)
    turns = [
        [
            (turn.role, turn.content, turn.thinking, turn.tool_calls, turn.train, turn.cut)
            for turn in part
        ]
        for part in parts_of(parsed)
    ]
    return pickle.dumps((turns, parsed.mode, parsed.tools, parsed.template_kwargs, parsed.repairs))


def load_row(data: bytes, *, source: SourceConfig, index: int) -> Parsed:
    """Return the row that `dump_row` serialized; raise its fault if it has one."""
    content = pickle.loads(data)
    if isinstance(content, RowError):
        raise content
    turns, mode, tools, template_kwargs, repairs = content
    about = {
        "mode": mode,
        "source": source_label(source),
        "row": index,
        "tools": tools,
        "template_kwargs": template_kwargs,
        "repairs": repairs,
    }
    if len(turns) == 1:
        return Conversation(messages=_messages(turns[0]), **about)
    prompt, chosen, rejected = map(_messages, turns)
    return PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, **about)


def _messages(turns: Sequence[tuple]) -> Part:  # type: ignore[type-arg]
    return tuple(
        Message(
            role=role, content=content, thinking=thinking, tool_calls=calls, train=train, cut=cut
        )
        for role, content, thinking, calls, train, cut in turns
    )
