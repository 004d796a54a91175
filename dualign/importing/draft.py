"""A recipe while it is made from another tool's: its keys, and a note on each key of the file.

A tool's `fill(draft)` reads values and says what becomes of them; whatever it leaves is done by the rows
of the tool's table, and a key without a row is named in the third list. So every key of the file has
exactly one note.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dualign.config import Document, Key, dotted
from dualign.importing.tables import ACTIONS, UNKNOWN, Action, KeyRow, Table

RECIPE_KEYS = ("name", "output_dir", "seed")
"""Keys of the recipe itself; all others are of its stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """What became of a key of the file."""

    action: Action
    key: str
    """with its place in the file: `datasets[0].path`"""
    line: int
    """0: the key isn't there, and this is the tool's default"""
    value: Any
    target: str = ""
    """our key; empty: nothing was set"""
    says: str = ""


@dataclass(slots=True)
class Draft:
    """A recipe in the making."""

    document: Document
    table: Table
    tool: str
    """the tool's name, for sentences"""
    folder: Path
    """where the file is"""
    out: Path
    """where the recipe will be, to which its paths are relative"""
    script: str | None = None
    """which of the tool's scripts the file is for, where the command line says it"""
    recipe: dict[str, Any] = field(default_factory=dict)
    stage: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    """NAME -> text of what is written beside the recipe"""
    notes: dict[Key, Note] = field(default_factory=dict)
    sources: dict[Key, int] = field(default_factory=dict)
    """a data set of the file -> the number of the source that it became"""
    no_defaults: set[str] = field(default_factory=set)
    """keys whose default isn't set where they aren't there"""
    problems: list[str] = field(default_factory=list)
    """why there can be no recipe at all"""

    @property
    def kind(self) -> str:
        """The kind of the stage: `sft` unless `fill` says otherwise."""
        return str(self.stage.get("kind", "sft"))

    def set_kind(self, kind: str) -> None:
        """Say what kind of stage it is; the stage is named after it."""
        self.stage = {"name": kind, "kind": kind} | {
            key: value for key, value in self.stage.items() if key not in ("name", "kind")
        }

    def find(self, path: str) -> Path | None:
        """Return a file or folder that the tool's file names, from its own folder or the working one."""
        places = (self.folder / Path(path).expanduser(), Path(path))
        return next((place for place in places if path and place.exists()), None)

    def path(self, path: str) -> str | None:
        """Return the path of a file that is there as the recipe has it, relative to its own folder."""
        place = self.find(path)
        if place is None or Path(path).expanduser().is_absolute():
            return None if place is None else str(Path(path).expanduser())
        return os.path.relpath(place, self.out)

    def get(self, *key: str | int) -> Any:
        """Return a value of the file: `get("datasets", 0, "path")`; None if it isn't there or empty."""
        value = self.document.value
        for part in key:
            if isinstance(part, int) and isinstance(value, list) and part < len(value):
                value = value[part]
            elif isinstance(part, str) and isinstance(value, Mapping):
                value = value.get(part)
            else:
                return None
        return value

    def number(self, *key: str | int) -> int | float | None:
        """Return a number of the file, or None; another value is named in the third list."""
        value = self.get(*key)
        if isinstance(value, str):
            for read in (int, float):
                with contextlib.suppress(ValueError):
                    return read(value)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        self.refuse(key, f"expected a number, found {value!r}")
        return None

    def put(self, target: str, value: Any) -> None:
        """Set our key: `put("data.sources[0].path", "rows.jsonl")`."""
        parts = _target_key(target)
        place: Any = self.recipe if target in RECIPE_KEYS else self.stage
        for part, below in itertools.pairwise(parts):
            _extend(place, part)
            if not isinstance(place, list) and not isinstance(place.get(part), dict | list):
                place[part] = [] if isinstance(below, int) else {}
            place = place[part]
        _extend(place, parts[-1])
        place[parts[-1]] = value

    def carry(self, key: str | Key, target: str = "", value: Any = None, says: str = "") -> None:
        """Carry a key over as it is: `value` is ours, set at `target` unless that is empty."""
        self._note("carried", key, target, value, says)

    def change(self, key: str | Key, target: str = "", value: Any = None, says: str = "") -> None:
        """Carry a key over with another meaning; `says` what changes, absent: the row's sentence."""
        self._note("changed", key, target, value, says)

    def refuse(self, key: str | Key, says: str = "") -> None:
        """Name a key that can't be carried over; `says` what to do, absent: the row's sentence."""
        self._note("refused", key, "", None, says)

    def _note(self, action: Action, key: str | Key, target: str, value: Any, says: str) -> None:
        """Set a value, and note a key; a second note on it joins the first."""
        place = (key,) if isinstance(key, str) else key
        row = self.table.row(place)
        if target and value is not None and "[]" not in target:
            self.put(target, value)
        says = says or (row.says if row and row.action == action else "")
        line = self.document.lines.get(place, 0)
        note = Note(
            action=action,
            key=dotted(place),
            line=line,
            value=self.get(*place),
            target=target,
            says=says,
        )
        if before := self.notes.get(place):
            note = _joined(before, note)
        self.notes[place] = note

    def apply(self, key: str | Key) -> None:
        """Do with a key what its row says; without a row, name it in the third list."""
        place = (key,) if isinstance(key, str) else key
        row, value = self.table.row(place), self.get(*place)
        if row is None and is_off(value) and self.table.has_below(place):
            self.carry(place, says=f"is empty: {self.tool}'s default")
        elif row is None:
            self.refuse(place, UNKNOWN)
        elif value is None:
            self.carry(place, says=f"is empty: {self.tool}'s default")
        elif _is_among(value, row.same):
            self.carry(place, says=row.says if row.action == "carried" else "as here")
        elif row.action == "refused" and is_off(value) and True not in row.same:
            self.carry(place, says="is off, as here")
        elif str(value).lower() in row.values:
            self._apply_value(place, row, row.values[str(value).lower()])
        elif row.kinds and self.kind not in row.kinds:
            self.refuse(
                place, f"has no meaning in a {self.kind} stage, only in {' or '.join(row.kinds)}"
            )
        else:
            # A launch is a file, which `fill` makes of such keys.
            ours = None if row.target == "launch" else value
            self._note(row.action, place, self._placed(row.target, place), ours, row.says)

    def _apply_value(self, place: Key, row: KeyRow, ours: Any) -> None:
        """Note a key by the entry of its value: ours, or a mapping with an action of its own."""
        target = self._placed(row.target, place)
        if not isinstance(ours, Mapping):
            self._note(row.action, place, target, ours, row.says)
        elif "refused" in ours:
            self.refuse(place, ours["refused"])
        elif "changed" in ours:
            self.change(place, target, ours["changed"], ours["says"])
        else:
            self._note(row.action, place, target, ours, row.says)

    def _placed(self, target: str, place: Key) -> str:
        """`data.sources[].path` of a key of a data set -> `data.sources[2].path`, the source that it became."""
        heads = (place[:length] for length in range(1, len(place)))
        numbers = [self.sources[head] for head in heads if head in self.sources]
        numbers += [part for part in place if isinstance(part, int)]
        return target.replace("[]", f"[{numbers[0]}]") if numbers else target

    def finish(self) -> None:
        """Apply the rows to all keys that have no note, and set the tool's defaults of keys that aren't there."""
        for place in self.leaves():
            if not any(place[:length] in self.notes for length in range(1, len(place) + 1)):
                self.apply(place)
        for row in self.table.rows.values():
            self._apply_default(row)

    def _apply_default(self, row: KeyRow) -> None:
        place: Key = tuple(row.key.split("."))
        absent = row.absent is not None and "[" not in row.key and self.get(*place) is None
        absent = absent and row.key not in self.no_defaults
        if absent and (not row.kinds or self.kind in row.kinds) and not self.has(row.target):
            self.assume(row.key, row.target, row.absent)

    def assume(self, key: str, target: str, value: Any, says: str = "") -> None:
        """Set what the tool does by itself where a key isn't there, and note that."""
        self.put(target, value)
        place: Key = tuple(key.split("."))
        self.notes[place] = Note(
            action="carried",
            key=key,
            line=self.document.lines.get(place, 0),
            value=value,
            target=target,
            says=says or f"isn't there: {self.tool}'s default",
        )

    def has(self, target: str) -> bool:
        """Return whether one of our keys is set."""
        place: Any = self.recipe if target in RECIPE_KEYS else self.stage
        for part in _target_key(target):
            if not is_in(part, place):
                return False
            place = place[part]
        return True

    def leaves(self) -> Iterator[Key]:
        """Yield the keys of the file that the table may have rows for, in order."""
        yield from self._leaves(self.document.value, ())

    def note_source(
        self, place: Key, number: int, source: Mapping[str, Any], *, unchanged: str
    ) -> None:
        """Note the keys of a set that are in its source; rows say what becomes of the others.

        Args:
            place: where the set is in the file.
            number: of the source in the recipe.
            unchanged: what is said of a key that the source doesn't need.
        """
        leaves = [key for key in self.leaves() if key[: len(place)] == place]
        for key in leaves:
            row = self.table.row(key)
            if row is None or row.action == "refused" or key in self.notes:
                continue
            ours = row.target.removeprefix("data.sources[].")
            target = f"data.sources[{number}].{ours}" if ours in source else ""
            if row.action == "changed":
                self.change(key, target)
            else:
                self.carry(key, target, says="" if target else unchanged)

    def _leaves(self, value: Any, key: Key) -> Iterator[Key]:
        items: Any = ()
        if isinstance(value, Mapping) and (not key or self.table.has_below(key)):
            items = value.items()
        elif isinstance(value, list) and self.table.has_below((*key, 0)):
            items = enumerate(value)
        if not items and key:
            yield key
        for name, item in items:
            yield from self._leaves(item, (*key, name))


def is_in(part: str | int, place: Any) -> bool:
    """Return whether a mapping has a key, or a list a place."""
    if isinstance(place, list):
        return isinstance(part, int) and part < len(place)
    return isinstance(place, Mapping) and part in place


def _extend(place: Any, part: str | int) -> None:
    """Make room in a list for a place in it."""
    if isinstance(place, list) and isinstance(part, int):
        place.extend({} for _ in range(part + 1 - len(place)))


def _target_key(target: str) -> list[str | int]:
    """`data.sources[0].path` -> ["data", "sources", 0, "path"]."""
    parts = re.findall(r"[^.\[\]]+", target)
    return [int(part) if part.isdigit() else part for part in parts]


def is_off(value: Any) -> bool:
    """Return whether a value switches off what its key is for."""
    return value is None or value is False or value in ("", [], {}, "no", "none")


def _is_among(value: Any, values: tuple[Any, ...]) -> bool:
    return any(type(value) is type(item) and value == item for item in values)


def _joined(before: Note, note: Note) -> Note:
    """Return one note of two on a key: the worse list, both sentences, both of our keys."""
    worse = max(before, note, key=lambda item: ACTIONS.index(item.action))
    sentences = dict.fromkeys(text for text in (before.says, note.says) if text)
    targets = dict.fromkeys(text for text in (before.target, note.target) if text)
    return replace(worse, says="; ".join(sentences), target=", ".join(targets))
