"""A recipe as YAML with comments: the three lists at its top, and where a key has another meaning, why."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from dualign.errors import ConfigError
from dualign.importing.draft import RECIPE_KEYS, Note
from dualign.importing.importing import Imported
from dualign.importing.tables import Action
from dualign.importing.yaml_text import comment, yaml_lines

TITLES: Mapping[Action, str] = {
    "carried": "Carried over as it is",
    "changed": "Carried over with another meaning",
    "refused": "Can't be carried over",
}


def write_recipe(imported: Imported, out: Path, *, force: bool = False) -> list[Path]:
    """Write a recipe and the files beside it; returns their paths.

    Raises:
        ConfigError: one of them is there, and `force` isn't set, or none can be written there.
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
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{error.filename}: can't be written: {error.strerror}") from None
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
            yield from comment(f"{_key_text(note)}: {_sentence(note)}", "#   ")


def _key_text(note: Note) -> str:
    """Return a key with its line in the file."""
    return f"{note.key} (line {note.line})" if note.line else note.key


def _sentence(note: Note) -> str:
    """Return what became of a key, in one line."""
    target = f"-> {note.target}" if note.target else ""
    parts = [part for part in (target, note.says) if part]
    return "; ".join(parts) or "nothing to set"
