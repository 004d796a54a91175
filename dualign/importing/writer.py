"""A recipe as YAML with comments: the three lists at its top, and where a key has another meaning, why."""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dualign.config import dotted, parse_value
from dualign.errors import ConfigError
from dualign.importing.draft import RECIPE_KEYS, Note
from dualign.importing.importing import Imported
from dualign.importing.tables import Action

TITLES: Mapping[Action, str] = {
    "carried": "Carried over as it is",
    "changed": "Carried over with another meaning",
    "refused": "Can't be carried over",
}
_WIDTH = 100


def write_recipe(imported: Imported, out: Path, *, force: bool = False) -> list[Path]:
    """Write a recipe and the files beside it; returns their paths.

    Raises:
        ConfigError: one of them is there, and `force` isn't set; nothing is written then.
    """
    texts = {out: recipe_text(imported)}
    texts |= {out.parent / name: text for name, text in imported.files.items()}
    there = [str(path) for path in texts if path.exists()]
    if any(path.is_dir() for path in texts):
        raise ConfigError(
            f"{out}: is a folder; expected the file to write, such as {out}/mine.yaml"
        )
    if there and not force:
        raise ConfigError(f"{', '.join(there)}: there already; choose another name, or use --force")
    if out.resolve() == imported.source.resolve():
        raise ConfigError(f"{out}: is the file that is read; choose another name for the recipe")
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return list(texts)


def recipe_text(imported: Imported) -> str:
    """Return the whole file: the lists as comments, then the keys."""
    comments = {
        name: note
        for note in imported.notes
        for name in note.target.split(", ")
        if name and note.action == "changed"
    }
    head = [*_heading(imported), ""]
    body = yaml_lines(imported.recipe, {_full(name): note.says for name, note in comments.items()})
    return "\n".join([*head, *body]) + "\n"


def _full(target: str) -> str:
    return target if target in RECIPE_KEYS else f"stages[0].{target}"


def _heading(imported: Imported) -> Iterator[str]:
    source = imported.source.name
    yield f"# {source} of {imported.tool}, brought over by `dualign import`."
    yield "# Look at it by `dualign plan` and `dualign inspect`, then run it by `dualign run`."
    for action, title in TITLES.items():
        notes = imported.list_of(action)
        yield "#"
        yield f"# {title}: {len(notes)}"
        for note in notes:
            yield from _comment(f"{_key_text(note)}: {_sentence(note)}", "#   ")


def _key_text(note: Note) -> str:
    """Return a key with its line in the file."""
    return f"{note.key} (line {note.line})" if note.line else note.key


def _sentence(note: Note) -> str:
    """Return what became of a key, in one line."""
    target = f"-> {note.target}" if note.target else ""
    parts = [part for part in (target, note.says) if part]
    return "; ".join(parts) or "nothing to set"


def _comment(text: str, indent: str) -> Iterator[str]:
    lines = textwrap.wrap(
        text, _WIDTH - len(indent), break_long_words=False, break_on_hyphens=False
    )
    for number, line in enumerate(lines):
        yield f"{indent}{'  ' if number else ''}{line}"


def yaml_lines(
    value: Any, comments: Mapping[str, str], key: tuple[str | int, ...] = ()
) -> Iterator[str]:
    """Yield a mapping or list as YAML; `comments` stand above their keys (`stages[0].data.max_tokens`)."""
    indent = "  " * _depth(key)
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value)
    for name, item in items:
        place = (*key, name)
        if text := comments.get(dotted(place)):
            yield from _comment(text, f"{indent}# ")
        head = "-" if isinstance(name, int) else f"{_scalar(name)}:"
        if not _is_block(item):
            yield f"{indent}{head} {_flow(item)}"
        elif isinstance(name, int):
            first, *rest = yaml_lines(item, comments, place)
            lines = [first, *rest]
            start = next(i for i, line in enumerate(lines) if not line.lstrip().startswith("#"))
            yield from lines[:start]
            yield f"{indent}- {lines[start].lstrip()}"
            yield from lines[start + 1 :]
        else:
            yield f"{indent}{head}"
            yield from yaml_lines(item, comments, place)


def _depth(key: Sequence[str | int]) -> int:
    return len(key)


def _is_block(item: Any) -> bool:
    """Return whether a value gets lines of its own: keys, and lists of keys."""
    if isinstance(item, Mapping):
        return bool(item)
    return isinstance(item, list) and any(isinstance(part, Mapping) for part in item)


def _flow(item: Any) -> str:
    if isinstance(item, Mapping):
        return "{}"
    if isinstance(item, list | tuple):
        return f"[{', '.join(map(_flow, item))}]"
    return _scalar(item)


def _scalar(value: Any) -> str:
    """Return a value as the recipe's reader reads it back."""
    if isinstance(value, str):
        plain = value and not set(value) & set("#:{}[],&*!|>'\"%@`\n\t\\")
        plain = (
            plain and value == value.strip() and value[0] not in "-?" and _reads_as(value, value)
        )
        return value if plain else json.dumps(value, ensure_ascii=False)
    text = yaml.safe_dump(value).splitlines()[0]
    return text


def _reads_as(text: str, value: Any) -> bool:
    try:
        return bool(parse_value(text) == value and isinstance(parse_value(text), str))
    except (ConfigError, ValueError):
        return False
