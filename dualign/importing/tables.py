"""What a tool's keys become: a YAML file for each tool, a row for each key that its documentation lists.

    signs: [base_model, sample_packing]            keys that no other tool has
    includes: [training_arguments]                 other tables whose rows it has, unless it has its own
    keys:
      learning_rate: {carried: train.learning_rate, absent: 1e-5}
      sequence_len: {changed: data.max_tokens, says: longer rows are dropped, not cut}
      datasets[].shards: {refused: set rows or weight of the source}

`carried`, `changed` and `refused` are the list that a key goes to, with our key, or for `refused` the
sentence that says what to do. More that a row may have:

    says: ...           what is different; of a changed key always
    values: {a: b}      our value for each of theirs; {refused: sentence} and {changed: b, says: ...} for one
    same: [a]           values that ask for what dualign does anyway
    absent: a           the tool's default, where dualign's own is another; it is set when the key isn't there
    kinds: [sft]        the kinds of stage that have our key, if not all

`alike` lists keys for which one sentence holds, and `aliases` lists whose keys are those of another list.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from dualign.config import Key, read_yaml

Action = Literal["carried", "changed", "refused"]
ACTIONS: tuple[Action, ...] = get_args(Action)
UNKNOWN = "is in no table of keys: look up what it does, and set it here by hand"


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyRow:
    """A key of a tool, and what becomes of it."""

    key: str
    """with its place: `datasets[].path`"""
    action: Action
    target: str = ""
    """our key, `train.learning_rate` or `data.sources[].path`; empty: nothing is set"""
    says: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    same: tuple[Any, ...] = ()
    absent: Any = None
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """The keys of one tool."""

    signs: tuple[str, ...]
    rows: Mapping[str, KeyRow]
    aliases: Mapping[str, str] = field(default_factory=dict)
    """`test_datasets[]` -> `datasets[]`"""

    def row(self, key: Key) -> KeyRow | None:
        """Return the row of a key with its place, or None."""
        return self.rows.get(self._pattern(key))

    def has_below(self, key: Key) -> bool:
        """Return whether keys inside of a key have rows of their own."""
        place = self._pattern(key)
        return any(name.startswith((f"{place}.", f"{place}[")) for name in self.rows)

    def _pattern(self, key: Key) -> str:
        """`("datasets", 0, "path")` -> `datasets[].path`."""
        text = ""
        for part in key:
            text += "[]" if isinstance(part, int) else f".{part}" if text else str(part)
            text = self.aliases.get(text, text)
        return text


@cache
def read_table(name: str) -> Table:
    """Read the keys of a tool."""
    document = read_yaml(Path(str(files("dualign.importing") / f"{name}.yaml")))
    document.raise_problems()
    values = document.value
    rows: dict[str, KeyRow] = {}
    for other in values.get("includes", ()):
        rows |= read_table(other).rows
    rows |= {key: _row(key, value) for key, value in values["keys"].items()}
    for group in values.get("alike", ()):
        row = {name: value for name, value in group.items() if name != "keys"}
        rows |= {key: _row(key, row) for key in group["keys"]}
    signs, aliases = tuple(values["signs"]), values.get("aliases", {})
    return Table(signs=signs, rows=rows, aliases=aliases)


def _row(key: str, value: Mapping[str, Any]) -> KeyRow:
    action = next(action for action in ACTIONS if action in value)
    refused = action == "refused"
    return KeyRow(
        key=key,
        action=action,
        target="" if refused else value[action] or "",
        says=value["refused"] if refused else value.get("says", ""),
        values={str(name).lower(): item for name, item in value.get("values", {}).items()},
        same=tuple(value.get("same", ())),
        absent=value.get("absent"),
        kinds=tuple(value.get("kinds", ())),
    )
