"""Templates that TRL brings: training templates of families whose own one strips or moves traces,
and later revisions of it.

`trl:NAME` is a file of the installed trl's `chat_templates`, found without importing trl.
"""

import re
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


def relatives(text: str) -> list[str]:
    """Return the names of the other templates of the family of the template `text`: its training
    template first, then other revisions, the last one first.
    """
    own = _stems().get(text.strip())
    if own is None:
        return []
    others = [stem for stem in _files() if stem != own and _family(stem) == _family(own)]
    others.sort(key=lambda stem: (stem == own + _TRAINING, len(stem), stem), reverse=True)
    return [PREFIX + stem for stem in others]


def is_relative(text: str, name: str) -> bool:
    """Return whether `text` is a template of the family of `trl:NAME`."""
    stem = _stems().get(text.strip())
    return stem is not None and name.startswith(PREFIX) and _family(stem) == _family(name)


def _family(stem: str) -> str:
    """`gemma4` of `gemma4_v3` and of `trl:gemma4_training`."""
    return re.sub(rf"(_v\d+)?({_TRAINING})?$", "", stem.removeprefix(PREFIX))


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
