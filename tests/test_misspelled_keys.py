"""Each key of each recipe that ships, misspelled in several ways: the message names it and the right one."""

import copy
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dualign.config import read_yaml
from dualign.errors import ConfigError
from dualign.recipe import load_recipe
from dualign.recipe_file import shipped_folder, shipped_recipes

RECIPES = sorted(
    str(path.relative_to(shipped_folder()))
    for path in shipped_recipes()
    if path.name != "experiment.yaml"  # no recipe
)
# Below these the user chooses the names.
FREE = ("args", "template_kwargs", "vary", "think", "no_think")  # the last two are of a switch


def key_paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key at every level, as a path."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, item in items:
        if isinstance(name, str):
            yield (*path, name)
        if name not in FREE:
            yield from key_paths(item, (*path, name))


def misspellings(key: str) -> list[str]:
    """Drop a letter, swap two, plural, a dash for the underscore, a doubled letter."""
    middle = len(key) // 2
    forms = [
        key[:middle] + key[middle + 1 :],
        key[: middle - 1] + key[middle] + key[middle - 1] + key[middle + 1 :],
        f"{key}s",
        key.replace("_", "-"),
        key[:middle] + key[middle] + key[middle:],
    ]
    return [form for form in dict.fromkeys(forms) if form and form != key]


def renamed(value: Any, path: tuple[Any, ...], name: str) -> Any:
    """The value with the last key of the path renamed, in its place."""
    value = copy.deepcopy(value)
    target = value
    for part in path[:-1]:
        target = target[part]
    items = [(name if key == path[-1] else key, item) for key, item in target.items()]
    target.clear()
    target.update(items)
    return value


def message(folder: Path, recipe: Any) -> str:
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    try:
        load_recipe(path, [])
    except ConfigError as error:
        return str(error)
    return ""


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(shipped_folder(), tmp_path_factory.mktemp("recipes") / "all"))


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RECIPES)
def test_a_misspelled_key_is_named_with_the_right_one(name: str, step: int, recipes: Path) -> None:
    """Every form of every key; in the short run one form of each key of the quickstart, of the others of some."""
    file = recipes / name
    recipe = read_yaml(file).value
    full, step = step == 1, 1 if "quickstart" in name else step
    unnamed = []
    for number, path in enumerate(key_paths(recipe)):
        forms = misspellings(path[-1])
        forms = forms if full else [forms[number % len(forms)]] * (number % step == 0)
        for form in forms:
            text = message(file.parent, renamed(recipe, path, form))
            if not names_both(text, form, path[-1]):
                unnamed.append(f"{path} as {form}: {text or 'accepted'}")
    assert not unnamed, "\n".join(unnamed)


def names_both(text: str, form: str, key: str) -> bool:
    lines = [line for line in text.splitlines() if re.search(rf"\b{re.escape(form)}\b", line)]
    return any(
        re.search(rf"'{re.escape(key)}'|[(,:] ?{re.escape(key)}[,)]", line) for line in lines
    )
