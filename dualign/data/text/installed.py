"""Training templates that TRL brings: those of families whose own template strips or moves traces.

`trl:NAME` is a file of the installed trl's `chat_templates`, found without importing trl.
"""

from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from dualign.errors import TemplateError

PREFIX = "trl:"
_TRAINING = "_training"


def installed_text(name: str) -> str:
    """Return the text of a template that is named `trl:NAME`.

    Raises:
        TemplateError: trl isn't installed, or has no such template.
    """
    names = _files()
    stem = name.removeprefix(PREFIX)
    if stem not in names:
        near = get_close_matches(stem, names, n=1)
        hint = f" (did you mean {PREFIX}{near[0]}?)" if near else ""
        have = "it has no chat_templates; install trl" if not names else "expected one of its files"
        raise TemplateError(
            f"template {name!r}: the installed trl has none of that name{hint}; {have}"
        )
    return names[stem].read_text(encoding="utf-8")


def training_template(text: str) -> str | None:
    """Return the name of the template that trains the family of the template `text`."""
    stem = _stems().get(text.strip())
    return f"{PREFIX}{stem}{_TRAINING}" if stem and stem + _TRAINING in _files() else None


def original_text(name: str) -> str | None:
    """Return the family's own template, of which `trl:NAME_training` is a variant."""
    stem = name.removeprefix(PREFIX)
    file = _files().get(stem.removesuffix(_TRAINING)) if stem.endswith(_TRAINING) else None
    return file.read_text(encoding="utf-8") if file else None


@cache
def _files() -> dict[str, Path]:
    """Return the templates of the installed trl by name."""
    spec = find_spec("trl")
    folders = spec.submodule_search_locations if spec else None
    return {
        file.stem: file
        for folder in folders or ()
        for file in sorted((Path(folder) / "chat_templates").glob("*.jinja"))
    }


@cache
def _stems() -> dict[str, str]:
    """Return the names of the templates by their text."""
    return {file.read_text(encoding="utf-8").strip(): stem for stem, file in _files().items()}
