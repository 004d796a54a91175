"""A recipe file -> the stages to run: includes read, overrides applied, every problem reported at once.

name: mine                     -> Recipe(name="mine", output_dir=..., stages=(
output_dir: runs/mine
stages:
  - {name: sft, recipe: sft.yaml}     StageEntry(name="sft", kind="sft", config=SFTStage(...)),
  - name: apo                         StageEntry(name="apo", kind="preference", ...)))
    kind: preference
    model: stage:sft           a parent: a path in its run directory when the stage runs
"""

import copy
import dataclasses
import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.config import Document, Key, nearest, nearest_key, parse, parse_value, read_yaml
from dualign.errors import ConfigError
from dualign.misspelled import kind_of_stage, restore_stages
from dualign.model_ref import StageRef
from dualign.recipe_card import CardConfig, parse_card, write_card
from dualign.stages import config_classes
from dualign.tasks.suites import fill_suites
from dualign.tasks.table import located, source_of

_RESERVED = ("name", "output_dir", "seed", "stages")  # no stage is called so
_RECIPE_KEYS = (*_RESERVED, "card")
_VARY = {"grid", "runs"}  # keys of an experiment (docs/experiments.md)
_OUTER_KEYS = ("output_dir", "seed", "card")  # of a stage's own file, besides the keys of its kind
# Values of these keys are paths relative to the recipe's folder, if such a file exists.
TASK_KEYS = ("tasks", "watch")
_PATH_KEYS = (
    *("path", "model", "models", *TASK_KEYS, "held_out", "script", "files", "template"),
    *("launch", "config_file", "rejected_model", "base_model", "config_from", "tokenizer_from"),
    *("lora", "verifier.file", "verifier.schema"),
)
_FILE_ENDING = re.compile(r"\.(ya?ml|py|jinja|jsonl?|csv|parquet|arrow|gz|zst)\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEntry:
    """One stage of a recipe. `config` is the dataclass of its kind, `seed` that of its randomness."""

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
    card: CardConfig | None = None

    def stage(self, name: str) -> StageEntry:
        """Return the stage of a name; a ConfigError lists the names that there are."""
        for entry in self.stages:
            if entry.name == name:
                return entry
        names = [entry.name for entry in self.stages]
        raise ConfigError(f"{self.file}: no stage {name!r}{nearest(name, names)}")


def load_recipe(path: Path, overrides: Sequence[str]) -> Recipe:
    """Read a pipeline recipe (`stages:`) or a stage recipe (`kind:`).

    Raises:
        ConfigError: with every problem of the file and the overrides.
    """
    document = _read(path, overrides)
    recipe = _parse_recipe(document, path)
    document.raise_problems()
    assert recipe is not None, "no problems means a recipe"
    return dataclasses.replace(recipe, overrides=tuple(overrides))


def plain_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain values in one piece: files included, overrides applied, paths absolute."""
    document = _read(recipe.file, recipe.overrides)
    document.raise_problems()
    values: dict[str, Any] = document.value
    return values


def keep_card(recipe: Recipe) -> None:
    """Keep the recipe's card next to its run directories, where `dualign publish` looks."""
    write_card(recipe.card, recipe.file, recipe.overrides, recipe.output_dir)


def is_experiment(values: Mapping[str, Any]) -> bool:
    """Return whether a file's keys are those of an experiment, which names a recipe and varies its keys."""
    return "recipe" in values and not {"stages", "kind"} & set(values) and bool(_VARY & set(values))


def _read(path: Path, overrides: Sequence[str]) -> Document:
    document = read_yaml(path)
    if is_experiment(document.value):
        raise ConfigError(
            f"{path}: is an experiment, not a recipe: `dualign experiment {path}` runs it, and with --dry-run "
            f"shows its runs; its recipe is {document.value['recipe']}"
        )
    _absolute_paths(document, document.value, path.parent)
    restore_stages(document)
    if "stages" not in document.value:
        document = _as_pipeline(document)
    _include(document, path.parent)
    for override in overrides:
        _apply(document, override)
    fill_suites(document.value.get("stages"))
    return document


def _as_pipeline(document: Document) -> Document:
    """Turn a stage recipe into a pipeline of one stage, named after the file if it has no name."""
    value = dict(document.value)
    name = value.get("name") or Path(document.file).stem
    outer = {key: value.pop(key) for key in _OUTER_KEYS if key in value}
    lines = {
        key if key[:1] and key[0] in _OUTER_KEYS else ("stages", 0, *key): line
        for key, line in document.lines.items()
    }
    pipeline = {"name": name, **outer, "stages": [{"name": name, **value}]}
    return Document(document.file, pipeline, lines, document.problems)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    """Return the keys or indices of a mapping or list, with their values; nothing for a scalar."""
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, (list, tuple)) else ()


def _absolute_paths(document: Document, value: Any, folder: Path, key: Key = ()) -> None:
    """Make paths absolute, in place. They start at the recipe's folder; hub ids and references stay.

    A value with the ending of a file must be a file, so a typo isn't taken for a hub id.
    """
    for name, item in _items(value):
        place = (*key, name)
        label = path_key(place)
        if not isinstance(item, str):
            _absolute_paths(document, item, folder, place)
        elif label in TASK_KEYS and source_of(item):
            value[name] = located(item, folder)
        elif may_be_path(label, item):
            path = _existing_path(folder, item)
            if path:
                value[name] = str(path)
            elif _FILE_ENDING.search(item):
                document.refuse(place, f"{item!r}: no such file (looked in {folder.resolve()})")


def path_key(place: Iterable[object]) -> str:
    """Return the name under which a value may be a path: its key; of a verifier's setting, verifier.KEY."""
    names = [part for part in place if isinstance(part, str)]
    return ".".join(names[-2:]) if names[-2:-1] == ["verifier"] else "".join(names[-1:])


def may_be_path(key: str, value: str) -> bool:
    """Return whether `value` under `key` may be a file or folder; templates that ship aren't."""
    if key == "template" and not value.endswith(".jinja"):
        return False
    return key in _PATH_KEYS and ":" not in value


def _existing_path(folder: Path, item: str) -> Path | None:
    """Return the absolute path of a file, folder or pattern, if it matches something."""
    path = Path(os.path.abspath(folder / Path(item).expanduser()))  # noqa: PTH100 - resolve() follows links
    if "*" in item:
        return path if glob.glob(str(path)) else None  # noqa: PTH207 - the pattern may be absolute
    return path if path.exists() else None


def _include(document: Document, folder: Path) -> None:
    """Replace `{name: sft, recipe: sft.yaml, ...}` by the stage of that file, with the other keys set."""
    stages = document.value.get("stages")
    for i, stage in enumerate(stages if isinstance(stages, list) else ()):
        if not isinstance(stage, dict) or "recipe" not in stage:
            continue
        included = read_yaml(folder / str(stage["recipe"]))
        _absolute_paths(included, included.value, folder)
        document.problems += included.problems
        base = {
            key: value for key, value in included.value.items() if key not in ("output_dir", "card")
        }
        changes = {key: value for key, value in stage.items() if key != "recipe"}
        stages[i] = _deep_update(base, changes)


def _deep_update(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`{a: {b: 1, c: 2}}`, `{a: {b: 3}}` -> `{a: {b: 3, c: 2}}`"""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _deep_update(result[key], value) if nested else value
    return result


def _apply(document: Document, override: str) -> None:
    """Apply `sft.train.learning_rate=1e-4`: a stage or a key of the recipe, keys, indices of lists."""
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
    elif first in _RECIPE_KEYS:
        rest = [first, *rest]
    elif len(stages) == 1 and not (rest and _is_stage(stages[0], first, rest[0])):
        target, rest = stages[0], [first, *rest]
    else:
        document.refuse(
            (),
            f"override {override!r}: no stage or key {first!r}{nearest(first, [*names, *_RECIPE_KEYS])}",
        )
        return
    _set(document, target, rest, parse_value(text), override)


def _is_stage(stage: Mapping[str, Any], first: str, second: str) -> bool:
    """Return whether `first.second` of an override means a stage `first` rather than a key of the only one."""
    keys = {name for cls in config_classes().values() for name in cls.__dataclass_fields__} | {
        "seed"
    }
    return first not in keys and second in keys and not nearest_key(first, [*keys])


def _set(document: Document, target: Any, keys: list[str], value: Any, override: str) -> None:
    if not keys:
        document.refuse((), f"override {override!r}: names a stage; expected stage.key=value")
        return
    for i, key in enumerate(keys):
        index: Any = key
        if isinstance(target, list):
            if not key.isdigit() or int(key) >= len(target):
                expected = f"expected an index below {len(target)}, found {key!r}"
                document.refuse((), f"override {override!r}: {expected}")
                return
            index = int(key)
        elif not isinstance(target, dict):
            document.refuse((), f"override {override!r}: {'.'.join(keys[:i])} has no keys")
            return
        if i == len(keys) - 1:
            target[index] = value
        else:
            target = target[index] if isinstance(target, list) else target.setdefault(index, {})


def _parse_recipe(document: Document, path: Path) -> Recipe | None:
    value = document.value
    for key in value:
        if key not in _RECIPE_KEYS:
            document.refuse((key,), f"unknown key{nearest(key, _RECIPE_KEYS)}")
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
    _check_names(document, stages)
    card = parse_card(document)
    return Recipe(
        name=str(value.get("name") or path.stem),
        file=path,
        output_dir=Path(output_dir),
        stages=tuple(entry for entry in entries if entry is not None),
        card=card,
    )


def _parse_stage(document: Document, value: Any, key: Key, seed: int) -> StageEntry | None:
    if not isinstance(value, dict):
        document.refuse(key, f"expected keys with values, found {value!r}")
        return None
    keys = dict(value)
    if (kind := kind_of_stage(document, keys, key)) is None:
        return None
    stage_seed = keys.pop("seed", seed)
    if not isinstance(stage_seed, int) or isinstance(stage_seed, bool):
        document.refuse((*key, "seed"), f"expected a whole number, found {stage_seed!r}")
    config = parse(config_classes()[kind], keys, document, key, others=("recipe", *_OUTER_KEYS))
    if config is None:
        return None
    return StageEntry(name=str(value["name"]), kind=kind, seed=stage_seed, config=config)


def _check_names(document: Document, stages: list[Any]) -> None:
    """Check that names are unique folder names, and that a stage refers only to stages above it."""
    seen: list[str] = []
    for i, stage in enumerate(stages):
        if not isinstance(stage, dict):
            continue
        name = str(stage.get("name"))
        if name in seen:
            document.refuse(("stages", i, "name"), f"{name!r} is the name of an earlier stage")
        if name in _RESERVED or not name.replace("-", "").replace("_", "").isalnum():
            document.refuse(
                ("stages", i, "name"),
                f"expected letters, digits, - and _ (not {', '.join(_RESERVED)}), found {name!r}",
            )
        for key, reference in _texts(stage, ("stages", i)):
            parent = stage_of(reference)
            if parent is not None and parent not in seen:
                document.refuse(
                    key, f"{reference!r}: no stage {parent!r} above this one{nearest(parent, seen)}"
                )
        seen.append(name)


def _texts(value: Any, key: Key = ()) -> Iterator[tuple[Key, str]]:
    """Yield every string in nested mappings and lists, with its key."""
    if isinstance(value, str):
        yield key, value
    for name, item in _items(value):
        yield from _texts(item, (*key, name))


def stage_of(reference: str) -> str | None:
    """`stage:sft/adapter` -> `sft`; None for text that is no reference."""
    ref = StageRef.parse(reference)
    return ref.name if ref else None


def references(config: Any) -> dict[str, StageRef]:
    """Return every `stage:` reference in a stage by its text, in order."""
    texts = [text for _, text in _texts(dataclasses.asdict(config))]
    return {text: ref for text in texts if (ref := StageRef.parse(text)) and ref.name}


def replace_texts(config: Any, paths: Mapping[str, str]) -> Any:
    """Return the stage with each string that is a key of `paths` replaced by its value."""
    if isinstance(config, str):
        return paths.get(config, config)
    if isinstance(config, tuple | list):
        return type(config)(replace_texts(item, paths) for item in config)
    if isinstance(config, Mapping):
        return {name: replace_texts(item, paths) for name, item in config.items()}
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        names = [field.name for field in dataclasses.fields(config)]
        values = {name: replace_texts(getattr(config, name), paths) for name in names}
        return dataclasses.replace(config, **values)
    return config
