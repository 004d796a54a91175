"""What the tests of LLaMA-Factory's and TRL's recipes ask of an import."""

from pathlib import Path
from typing import Any

from dualign.importing.importing import Imported, import_recipe
from dualign.importing.writer import write_recipe
from dualign.recipe import load_recipe


def brought(path: Path, **options: Any) -> tuple[Imported, Any]:
    """What became of a file, and the stage that loads from it."""
    out = path.with_name(f"{path.stem}-mine.yaml")
    imported = import_recipe(path, out=out, **options)
    write_recipe(imported, out, force=True)
    return imported, load_recipe(out, ()).stages[0].config


def says(imported: Imported, key: str) -> tuple[str, str]:
    """The list of a key, and its sentence."""
    (note,) = (note for note in imported.notes if note.key == key)
    return note.action, note.says


def sizes(imported: Imported) -> list[int]:
    return [len(imported.list_of(action)) for action in ("carried", "changed", "refused")]
