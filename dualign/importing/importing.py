"""Another tool's file -> a recipe of dualign, and what that changes.

    read_file -> choose_tool -> Draft -> the tool's fill(draft) -> rows of its table -> settle -> Imported

Nothing of it imports torch or transformers. What dualign itself refuses in the result is taken out and
named in the third list, so that the recipe that is written loads.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dualign.config import Document, Key, dotted, parse, read_yaml
from dualign.errors import ConfigError
from dualign.importing.draft import Draft, Note, is_in
from dualign.importing.launchers import launch_by_accelerate
from dualign.importing.modes import require_switch
from dualign.importing.tables import Action
from dualign.importing.tools import choose_tool
from dualign.stages import config_classes

_REQUIRED = {("kind",), ("name",), ("model",), ("data",), ("data", "sources")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """A recipe made from another tool's file, with what became of each of its keys."""

    tool: str
    """as it is written: LLaMA-Factory"""
    source: Path
    recipe: Mapping[str, Any]
    notes: tuple[Note, ...]
    """in the order of the file; defaults of the tool at the end"""
    files: Mapping[str, str]
    """NAME -> text of what is written beside the recipe"""

    def list_of(self, action: Action) -> tuple[Note, ...]:
        """Return one of the three lists."""
        return tuple(note for note in self.notes if note.action == action)


def import_recipe(
    path: Path,
    tool: str | None = None,
    out: Path | None = None,
    *,
    script: str | None = None,
    launch: Path | None = None,
) -> Imported:
    """Return the recipe that another tool's file becomes.

    Args:
        tool: the tool's name; None: found by the file's keys.
        out: where the recipe will be; its paths are relative to that folder. None: the file's own.
        script: which of the tool's scripts the file is for, where its keys don't tell (of TRL).
        launch: the accelerate file that the run was launched with.

    Raises:
        ConfigError: the file is missing, isn't YAML with keys, is of no known tool or of several, or
            has no model or no data.
    """
    document = _read(path)
    chosen = choose_tool(document.value, document.file, tool)
    draft = Draft(
        document=document,
        table=chosen.table,
        tool=chosen.shown,
        script=script,
        folder=path.parent,
        out=(out or path).parent,
    )
    stem = (out or path).stem
    draft.recipe |= {"name": stem, "output_dir": f"runs/{stem}"}
    draft.set_kind("sft")
    if launch is not None:
        launch_by_accelerate(draft, launch)
    chosen.fill(draft)
    if not draft.problems:
        draft.finish()
        _settle(draft)
    document.problems += draft.problems
    document.raise_problems()
    order = [field.name for field in fields(config_classes()[draft.kind])]
    order = ["name", "kind", *(name for name in order if name not in ("name", "kind"))]
    stage = {name: draft.stage[name] for name in order if name in draft.stage}
    return Imported(
        tool=chosen.shown,
        source=path,
        recipe={**draft.recipe, "stages": [stage]},
        notes=_ordered(draft),
        files=draft.files,
    )


def _read(path: Path) -> Document:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise ConfigError(f"{path}: {what}; expected the YAML file of another tool's run")
    document = read_yaml(path)
    document.raise_problems()
    if not document.value:
        raise ConfigError(f"{path}: is empty; expected the YAML file of another tool's run")
    return document


@dataclass(slots=True)
class _Refusals(Document):
    """A document that keeps the key of each problem."""

    keys: list[tuple[Key, str]] = field(default_factory=list)

    def refuse(self, key: Key, message: str) -> None:
        self.keys.append((key, message))
        Document.refuse(self, key, message)


def _settle(draft: Draft) -> None:
    """Take out what dualign refuses, and name it in the third list; `problems` if a recipe needs it.

    The deepest keys go first: what is said of the keys above them may be wrong only because of these.
    """
    while not draft.problems:
        document = _Refusals(file=draft.document.file)
        stage = parse(config_classes()[draft.kind], draft.stage, document)
        if stage is not None:
            document.keys += [(tuple(key.split(".")), text) for key, text in stage.unused()]
        if not document.keys:
            if stage is not None:
                require_switch(draft, stage.data)
            return
        deepest = max(len(key) for key, _ in document.keys)
        refusals: dict[Key, str] = {}
        for key, message in document.keys:
            place = _whole(_existing(draft.stage, key))
            if _existing(draft.stage, key) != key or place in _REQUIRED or place[-1] == "path":
                draft.problems.append(f"{draft.document.file}: {_blamed(draft, key)}: {message}")
            elif len(key) == deepest:
                refusals.setdefault(place, message)
        for place, message in refusals.items():
            _take_out(draft, place, message)


def _whole(place: Key) -> Key:
    """Return the list that a key is an item of, else the key: a list isn't kept in part."""
    while place and isinstance(place[-1], int):
        place = place[:-1]
    return place


def _existing(stage: Mapping[str, Any], key: Key) -> Key:
    """Return the longest head of a key that is in the stage."""
    place: Any = stage
    for number, part in enumerate(key):
        if not is_in(part, place):
            return key[:number]
        place = place[part]
    return key


def _take_out(draft: Draft, place: Key, message: str) -> None:
    container: Any = draft.stage
    for part in place[:-1]:
        container = container[part]
    value = container.pop(place[-1])
    target = dotted(place)
    says = f"dualign refuses {target}: {value!r}, which isn't in the recipe: {message}"
    for key in _setters(draft, target) or [(f"({target})",)]:
        draft.refuse(key, says)


def _setters(draft: Draft, target: str) -> list[Key]:
    """Return the keys of the file that set one of ours or something in it; without one, what it is in."""

    def those(is_meant: Callable[[str], bool]) -> list[Key]:
        notes = draft.notes.items()
        return [key for key, note in notes if any(map(is_meant, note.target.split(", ")))]

    inside = those(lambda name: name == target or name.startswith((f"{target}.", f"{target}[")))
    around = those(lambda name: bool(name) and target.startswith((f"{name}.", f"{name}[")))
    return inside or around


def _blamed(draft: Draft, key: Key) -> str:
    """Return the key of the file that set one of ours, for a message; ours if none did."""
    target = dotted(key)
    theirs = [draft.notes[key].key for key in _setters(draft, target)]
    return ", ".join(theirs) or target or draft.kind


def _ordered(draft: Draft) -> tuple[Note, ...]:
    notes = draft.notes.values()
    return tuple(sorted(notes, key=lambda note: (note.line == 0, note.line)))
