"""Parse the rows of one source, and store parsed rows between two passes over them.

With dedup or decontaminate there are two passes: screening parses the rows, and tokenizing reads
the parsed ones.
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Any

from datasets import ClassLabel

from dualign.data.config import SourceConfig, Supervise
from dualign.data.conversation import (
    Conversation,
    Message,
    PreferencePair,
    RatedAnswer,
    RowType,
)
from dualign.data.faults import RowError
from dualign.data.rows.padding import Structs, without_padding
from dualign.data.rows.shapes import Part, Row
from dualign.data.rows.sources import source_label, to_conversation, to_pair, to_rated
from dualign.data.rows.text_rules import NO_RULES, TextRules

Parsed = Conversation | PreferencePair | RatedAnswer
_TURN_FIELDS = tuple(entry.name for entry in fields(Message))
_turn_values = attrgetter(*_TURN_FIELDS)
_ROW_FIELDS = tuple(
    entry.name
    for entry in fields(Conversation)
    if entry.name not in ("messages", "source", "row", "raw")
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RowParser:
    """Raw row -> Conversation, PreferencePair or RatedAnswer, by `row_type`; RowError if it is inconsistent.

    `structs` are the columns whose objects hold padding.
    """

    source: SourceConfig
    supervise: Supervise
    row_type: RowType
    rules: TextRules
    structs: Structs = field(default_factory=dict)

    def __call__(self, row: Row, index: int) -> Parsed:
        plain = without_padding(row, self.structs)
        row = {**plain, **self._numbers(row)} if self.structs else plain
        if self.row_type != "conversation":
            parse = to_pair if self.row_type == "pair" else to_rated
            return parse(row, source=self.source, index=index, rules=self.rules)
        return to_conversation(
            row, source=self.source, index=index, supervise=self.supervise, rules=self.rules
        )

    def _numbers(self, row: Row) -> Row:
        """Return the classes whose values the recipe maps: its numbers are the table's."""
        specs = [spec for spec in self.source.columns.values() if isinstance(spec, Mapping)]
        names = [spec["from"] for spec in specs if "from" in spec]
        return {name: row[name] for name in names if isinstance(self.structs.get(name), ClassLabel)}

    def without_rules(self) -> "RowParser":
        """Return the parser that takes every text as it is."""
        return replace(self, rules=NO_RULES)


def parts_of(parsed: Parsed) -> tuple[Part, ...]:
    """Return (messages,), (prompt, chosen, rejected) of a pair, or (prompt, answer) of a rated one."""
    if isinstance(parsed, Conversation):
        return (parsed.messages,)
    if isinstance(parsed, RatedAnswer):
        return parsed.prompt, parsed.answer
    return parsed.prompt, parsed.chosen, parsed.rejected


def dump_row(parsed: Parsed | RowError) -> bytes:
    """Serialize a parsed row, or its fault. As plain tuples it takes a fifth of pickle's time."""
    if isinstance(parsed, RowError):
        return pickle.dumps(parsed)
    turns = [[_turn_values(turn) for turn in part] for part in parts_of(parsed)]
    about = {name: getattr(parsed, name) for name in _ROW_FIELDS}
    if isinstance(parsed, RatedAnswer):
        about["desirable"] = parsed.desirable
    if isinstance(parsed, Conversation):
        about["raw"] = parsed.raw
    return pickle.dumps((turns, about))


def load_row(data: bytes, *, source: SourceConfig, index: int) -> Parsed:
    """Return the row that `dump_row` serialized; raise its fault if it has one."""
    content = pickle.loads(data)
    if isinstance(content, RowError):
        raise content
    turns, about = content
    about |= {"source": source_label(source), "row": index}
    if len(turns) == 1:
        return Conversation(messages=_messages(turns[0]), **about)
    if "desirable" in about:
        prompt, answer = map(_messages, turns)
        return RatedAnswer(prompt=prompt, answer=answer, **about)
    prompt, chosen, rejected = map(_messages, turns)
    return PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, **about)


def _messages(turns: Sequence[tuple[Any, ...]]) -> Part:
    return tuple(Message(**dict(zip(_TURN_FIELDS, values, strict=True))) for values in turns)
