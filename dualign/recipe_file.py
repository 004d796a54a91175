"""Where the file of a recipe is: the user's own, or one that ships.

quickstart              the recipe that ships
quickstart/  ./mine     a folder here: its recipe.yaml
mine.yaml               a file here
"""

import logging
from importlib import import_module
from pathlib import Path

from dualign.errors import ConfigError

logger = logging.getLogger(__name__)
RECIPE_FILE = "recipe.yaml"
"""the file that a folder stands for"""


def shipped_folder() -> Path:
    """Return the folder of the recipes that ship with dualign."""
    return Path(import_module("dualign.recipes").__path__[0])


def shipped_names() -> list[str]:
    """Return the names that `find_recipe` knows: `quickstart`, `smollm3/sft`, ..."""
    files = [path.relative_to(shipped_folder()) for path in shipped_recipes()]
    return [*(str(file.with_suffix("")) for file in files), *(file.parts[0] for file in files)]


def shipped_recipes() -> list[Path]:
    """Return the recipes that ship, without the files that launch them."""
    files = sorted(shipped_folder().glob("*/*.yaml"))
    return [file for file in files if file.parent.name not in ("accelerate", "skypilot")]


def find_recipe(name: str | Path, *, folder: Path = Path()) -> Path:
    """Return a file of the user's, a recipe that ships (`quickstart`), or recipe.yaml of the user's folder.

    Of a folder and a recipe that ships of the same name, the one that ships is taken, and that is
    logged; `quickstart/` and `./quickstart` name the folder.

    Args:
        folder: where the user's own are; default: the working folder.

    Raises:
        ConfigError: none is there.
    """
    path = folder / name
    if path.is_file():
        return path
    own, shipped = path / RECIPE_FILE, _shipped(Path(name))
    if path.is_dir() and (shipped is None or _says_folder(str(name))):
        if own.is_file():
            return own
        files = ", ".join(sorted(file.name for file in path.glob("*.y*ml")))
        raise ConfigError(
            f"{name}: is a folder without {RECIPE_FILE}; name the file of a recipe"
            f"{f', such as one of those in it: {files}' if files else ''}"
        )
    if shipped is not None:
        if own.is_file():
            logger.warning("%s: the recipe that ships; %s/ is the folder here", name, name)
        return shipped
    there = ", ".join(str(path.relative_to(shipped_folder())) for path in shipped_recipes())
    raise ConfigError(f"{name}: no such file, and no recipe of that name ships (there: {there})")


def _shipped(name: Path) -> Path | None:
    place = shipped_folder() / name
    files = (place, place.with_name(f"{place.name}.yaml"), place / RECIPE_FILE)
    return next((file for file in files if not name.is_absolute() and file.is_file()), None)


def _says_folder(name: str) -> bool:
    return name.endswith("/") or name.startswith(("./", "../", "/"))
