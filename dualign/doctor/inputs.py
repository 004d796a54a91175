"""Classify what doctor is given: a recipe, a saved model, or data. Light: looks at names only."""

from pathlib import Path
from typing import Literal

from dualign.errors import ConfigError
from dualign.model_ref import EMBEDDED_PREFIX, HubRef
from dualign.recipe_file import RECIPE_FILE

InputKind = Literal["recipe", "model", "data"]
_MODEL_FILES = (
    "config.json",
    "adapter_config.json",
    "tokenizer_config.json",
    "model.safetensors",
    "adapter_model.safetensors",
)
_RECIPE_SUFFIXES = (".yaml", ".yml")


def input_kind(name: str, *, recipes: list[str]) -> InputKind:
    """Return the kind of `name`; `recipes` are the names of the recipes that ship.

    Raises:
        ConfigError: a path that doesn't exist.
    """
    path = Path(name).expanduser()
    if name.startswith(EMBEDDED_PREFIX):
        return "model"
    if path.is_dir():
        if any((path / file).is_file() for file in _MODEL_FILES):
            return "model"
        return "recipe" if (path / RECIPE_FILE).is_file() else "data"
    if name.endswith(_RECIPE_SUFFIXES) or (not path.exists() and name in recipes):
        return "recipe"
    if path.is_file() or set("*?[") & set(name):
        return "data"
    if HubRef.parse(name) is None or "/" not in name:
        raise ConfigError(
            f"{name}: no such file or folder; expected a recipe, a model folder, a data file or "
            "folder, or the hub id of a dataset"
        )
    return "data"
