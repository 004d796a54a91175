"""A recipe file -> the stages to run: includes read, overrides applied, every problem told at once."""

import copy
import dataclasses
import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from dualign.config import Document, Key, nearest, parse, parse_value, read_yaml
from dualign.errors import ConfigError
from dualign.model_ref import StageRef
from dualign.stages import config_classes

RECIPE_KEYS = ("name", "output_dir", "seed", "stages")
# Values under these keys are files beside the recipe when such a file exists.
PATH_KEYS = (
    "path",
    "model",
    "models",
    "tasks",
    "script",
    "files",
    "template",
    "launch",
    "rejected_model",
    "base_model",
    "config_from",
    "tokenizer_from",
    "lora",
)
FILE_ENDINGS = (
    ".yaml",
    ".yml",
    ".py",
    ".jinja",
    ".json",
    ".jsonl",
    ".csv",
    ".parquet",
    ".arrow",
    ".gz",
    ".zst",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEntry:
    """One stage of a recipe. `config` is the dataclass of its kind; `seed` is what its randomness starts from."""

    name: str
    kind: str
    seed: int
    config: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Stages in order. Run directories are `output_dir/STAGE`."""

    name: str
    file: Path
    output_dir: Path
    stages: tuple[StageEntry, ...]
    overrides: tuple[str, ...] = ()

    def stage(self, name: str) -> StageEntry:
        for entry in self.stages:
            if entry.name == name:
                return entry
        names = [entry.name for entry in self.stages]
        raise ConfigError(f"{self.file}: no stage {name!r}{nearest(name, names)}")


def shipped_folder() -> Path:
    """Return the folder of the recipes that ship with dualign."""
    return Path(import_module("dualign.recipes").__path__[0])


def shipped_names() -> list[str]:
    """Return the names that `find_recipe` knows: `quickstart`, `smollm3/sft`, ..."""
    files = [path.relative_to(shipped_folder()) for path in shipped_folder().glob("*/*.yaml")]
    return [*(str(file.with_suffix("")) for file in files), *(file.parts[0] for file in files)]


def find_recipe(name: str | Path) -> Path:
    """Return a file of the user's, else a recipe that ships: `quickstart`, `smollm3/sft`.

    Raises:
        ConfigError: neither is there.
    """
    shipped = shipped_folder()
    for path in (
        Path(name),
        shipped / name,
        shipped / f"{name}.yaml",
        shipped / name / "recipe.yaml",
    ):
        if path.is_file():
            return path
    names = sorted(str(path.relative_to(shipped)) for path in shipped.glob("*/*.yaml"))
    raise ConfigError(
        f"{name}: no such file, and no recipe of that name ships (there: {', '.join(names)})"
    )


def load_recipe(path: Path, overrides: Sequence[str]) -> Recipe:
    """Read a pipeline recipe (`stages:`) or a stage recipe (`kind:`).

    Raises:
        ConfigError: with every problem of the file and the overrides.
    """
    document = read_yaml(path)
    _absolute_paths(document, document.value, path.parent)
    if "stages" not in document.value:
        document = _as_pipeline(document)
    _include(document, path.parent)
    for override in overrides:
        _apply(document, override)
    recipe = _parse_recipe(document, path)
    document.raise_problems()
    assert recipe is not None, "no problems means a recipe"
    return dataclasses.replace(recipe, overrides=tuple(overrides))


def _as_pipeline(document: Document) -> Document:
    """A stage recipe is a pipeline of one stage, named after the file unless it says."""
    value = dict(document.value)
    name = value.get("name") or Path(document.file).stem
    outer = {key: value.pop(key) for key in ("output_dir", "seed") if key in value}
    lines = {
        ("stages", 0, *key): line
        for key, line in document.lines.items()
        if key[:1] not in {("output_dir",), ("seed",)}
    }
    lines |= {
        key: line for key, line in document.lines.items() if key[:1] in {("output_dir",), ("seed",)}
    }
    stages = [{"name": name, **value}]
    return Document(
        document.file, {"name": name, **outer, "stages": stages}, lines, document.problems
    )


def _absolute_paths(document: Document, value: Any, folder: Path, key: Key = ()) -> None:
    """Paths in a recipe are relative to the recipe's folder; hub ids and `stage:` references stay.

    A value that ends like a file has to be one: a mistyped name isn't taken for a hub id.
    """
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, item in items:
        here = (*key, name)
        label = next((part for part in reversed(here) if isinstance(part, str)), "")
        if not isinstance(item, str):
            _absolute_paths(document, item, folder, here)
        elif may_be_path(label, item):
            found = _beside(folder, item)
            if found:
                value[name] = str(found)
            elif item.endswith(FILE_ENDINGS):
                document.refuse(here, f"{item!r}: no such file (looked in {folder.resolve()})")


def may_be_path(key: str, value: str) -> bool:
    """Whether `value` under `key` may name a file or folder. Templates that ship go by name: `dualign` is no folder."""
    if key == "template" and not value.endswith(".jinja"):
        return False
    return key in PATH_KEYS and ":" not in value


def _beside(folder: Path, item: str) -> Path | None:
    """The file, folder or pattern beside the recipe, if it is there."""
    candidate = Path(os.path.abspath(folder / Path(item).expanduser()))  # noqa: PTH100 - resolve() follows links
    if "*" in item:
        return candidate if glob.glob(str(candidate)) else None  # noqa: PTH207 - the pattern may be absolute
    return candidate if candidate.exists() else None


def _include(document: Document, folder: Path) -> None:
    """`{name: sft, recipe: sft.yaml, ...}` is the stage of that file with the other keys laid over it."""
    stages = document.value.get("stages")
    for i, stage in enumerate(stages if isinstance(stages, list) else ()):
        if not isinstance(stage, dict) or "recipe" not in stage:
            continue
        included = read_yaml(folder / str(stage["recipe"]))
        _absolute_paths(included, included.value, folder)
        document.problems += included.problems
        base = {key: value for key, value in included.value.items() if key != "output_dir"}
        over = {key: value for key, value in stage.items() if key != "recipe"}
        stages[i] = _overlaid(base, over)


def _overlaid(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _overlaid(merged[key], value) if both else value
    return merged


def _apply(document: Document, override: str) -> None:
    """`sft.train.learning_rate=1e-4`: the first word is a stage or a key of the recipe; numbers index lists."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        document.refuse((), f"override {override!r}: expected key.sub=value")
        return
    stages = [stage for stage in document.value.get("stages", ()) if isinstance(stage, dict)]
    names = [str(stage.get("name")) for stage in stages]
    first, *rest = name.split(".")
    target: Any = document.value
    if first in names:
        target = stages[names.index(first)]
    elif first in RECIPE_KEYS:
        rest = [first, *rest]
    elif len(stages) == 1:
        target, rest = stages[0], [first, *rest]
    else:
        document.refuse(
            (),
            f"override {override!r}: no stage or key {first!r}{nearest(first, [*names, *RECIPE_KEYS])}",
        )
        return
    _set(document, target, rest, parse_value(text), override)


def _set(document: Document, target: Any, keys: list[str], value: Any, override: str) -> None:
    if not keys:
        document.refuse((), f"override {override!r}: names a stage; expected stage.key=value")
        return
    for i, key in enumerate(keys):
        last = i == len(keys) - 1
        if isinstance(target, list):
            if not key.isdigit() or int(key) >= len(target):
                document.refuse(
                    (),
                    f"override {override!r}: expected an index below {len(target)}, found {key!r}",
                )
                return
            if last:
                target[int(key)] = value
            else:
                target = target[int(key)]
        elif isinstance(target, dict):
            if last:
                target[key] = value
            else:
                target = target.setdefault(key, {})
        else:
            document.refuse((), f"override {override!r}: {'.'.join(keys[:i])} has no keys")
            return


def _parse_recipe(document: Document, path: Path) -> Recipe | None:
    value = document.value
    for key in value:
        if key not in RECIPE_KEYS:
            document.refuse((key,), f"unknown key{nearest(key, RECIPE_KEYS)}")
    seed = value.get("seed", 42)
    if not isinstance(seed, int) or isinstance(seed, bool):
        document.refuse(("seed",), f"expected a whole number, found {seed!r}")
        seed = 42
    output_dir = value.get("output_dir")
    if not isinstance(output_dir, str):
        document.refuse((), "needs the key 'output_dir' (text): where the run directories go")
        output_dir = "."
    stages = value.get("stages")
    if not isinstance(stages, list) or not stages:
        document.refuse(("stages",), "expected a list of at least one stage")
        return None
    entries = [_parse_stage(document, stage, ("stages", i), seed) for i, stage in enumerate(stages)]
    made = [entry for entry in entries if entry is not None]
    _check_names(document, stages)
    return Recipe(
        name=str(value.get("name") or path.stem),
        file=path,
        output_dir=Path(output_dir),
        stages=tuple(made),
    )


def _parse_stage(document: Document, value: Any, key: Key, seed: int) -> StageEntry | None:
    if not isinstance(value, dict):
        document.refuse(key, f"expected keys with values, found {value!r}")
        return None
    kind, classes = value.get("kind"), config_classes()
    if not isinstance(kind, str) or kind not in classes:
        document.refuse((*key, "kind"), f"expected one of {', '.join(classes)}, found {kind!r}")
        return None
    own = dict(value)
    stage_seed = own.pop("seed", seed)
    if not isinstance(stage_seed, int) or isinstance(stage_seed, bool):
        document.refuse((*key, "seed"), f"expected a whole number, found {stage_seed!r}")
    config = parse(classes[kind], own, document, key)
    if config is None:
        return None
    return StageEntry(name=str(value["name"]), kind=kind, seed=stage_seed, config=config)


def _check_names(document: Document, stages: list[Any]) -> None:
    """Names are unique folder names, and a stage refers only to stages above it."""
    seen: list[str] = []
    for i, stage in enumerate(stages):
        if not isinstance(stage, dict):
            continue
        name = str(stage.get("name"))
        if name in seen:
            document.refuse(("stages", i, "name"), f"{name!r} is the name of an earlier stage")
        if name in RECIPE_KEYS or not name.replace("-", "").replace("_", "").isalnum():
            document.refuse(
                ("stages", i, "name"),
                f"expected letters, digits, - and _ (not {', '.join(RECIPE_KEYS)}), found {name!r}",
            )
        for key, reference in _text(stage, ("stages", i)):
            parent = stage_of(reference)
            if parent is not None and parent not in seen:
                document.refuse(
                    key, f"{reference!r}: no stage {parent!r} above this one{nearest(parent, seen)}"
                )
        seen.append(name)


def _text(value: Any, key: Key) -> list[tuple[Key, str]]:
    if isinstance(value, str):
        return [(key, value)]
    if isinstance(value, dict):
        return [found for name, item in value.items() for found in _text(item, (*key, name))]
    if isinstance(value, list):
        return [found for i, item in enumerate(value) for found in _text(item, (*key, i))]
    return []


def stage_of(reference: str) -> str | None:
    """`stage:sft/adapter` -> `sft`; None for text that is no reference."""
    ref = StageRef.parse(reference)
    return ref.name if ref else None


def references(config: Any) -> dict[str, StageRef]:
    """Return every `stage:` reference in a stage by its text, in order."""
    texts = [text for _, text in _text(_listed(dataclasses.asdict(config)), ())]
    return {text: ref for text in texts if (ref := StageRef.parse(text)) and ref.name}


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _listed(item) for name, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value


def replaced(config: Any, paths: Mapping[str, str]) -> Any:
    """The same stage with each text that is a key of `paths` replaced by its value."""
    if isinstance(config, str):
        return paths.get(config, config)
    if isinstance(config, tuple | list):
        return type(config)(replaced(item, paths) for item in config)
    if isinstance(config, Mapping):
        return {name: replaced(item, paths) for name, item in config.items()}
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        changed = {
            f.name: replaced(getattr(config, f.name), paths) for f in dataclasses.fields(config)
        }
        return dataclasses.replace(config, **changed)
    return config
