"""The file of an experiment: a recipe, the keys that vary, and how runs are compared. Light to import.

recipe: recipe.yaml
grid:
  apo.train.beta: [0.05, 0.1, 0.3]
  apo.seed: [0, 1]
score: eval.think.accuracy
halving: {stage: apo, rungs: [50, 100]}
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dualign.config import Document, parse, parse_value, read_yaml
from dualign.errors import ConfigError
from dualign.recipe_file import find_recipe

Point = Mapping[str, Any]
_OWN_KEYS = ("name", "output_dir", "score", "best")  # that KEY=VALUE on the command line sets
# Keys that these tools' users look for.
_ELSEWHERE = {
    "parameters": "grid: {apo.train.beta: [0.1, 0.3]}",
    "param_space": "grid: {apo.train.beta: [0.1, 0.3]}",
    "sweep": "grid",
    "metric": "score",
    "goal": "best: highest or lowest",
    "mode": "best: highest or lowest",
    "early_terminate": "halving: {stage: apo, rungs: [50, 100]}",
    "scheduler": "halving: {stage: apo, rungs: [50, 100]}",
    "program": "recipe",
    "overrides": "set",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Halving:
    """Successive halving (arXiv 1502.07943): at each rung the worse settings are stopped."""

    stage: str
    """the training stage that is paused at the rungs"""
    rungs: tuple[int, ...]
    """steps of that stage, rising; its schedule stays that of all steps"""
    metric: str = ""
    """a held-out metric of the stage (margin, in nats; loss; rewards/accuracies), or a metric of an eval stage, whose tasks the paused models are then asked (eval.think.accuracy); default: margin, for SFT loss"""
    keep: float = 0.5
    """the share of the settings that goes on after a rung, rounded up"""

    def kept(self, settings: int) -> int:
        """Return how many of so many settings go on after a rung."""
        return math.ceil(round(self.keep * settings, 9))

    def steps(self, settings: int, last: int) -> int:
        """Return the steps of all settings together, of stages that have `last` steps.

        4 settings, rungs at 10 and 20, a half kept: 4 * 10 + 2 * 10 + 1 * (last - 20).
        """
        total, done = 0, 0
        for rung in self.rungs:
            total += settings * (rung - done)
            settings, done = self.kept(settings), rung
        return total + settings * (last - done)

    def problems(self) -> list[tuple[str, str]]:
        issues = []
        if not 0 < self.keep < 1:
            issues.append(("keep", f"expected a share between 0 and 1, found {self.keep:g}"))
        if not self.rungs:
            issues.append(("rungs", "expected one step at least, found none"))
        rising = all(
            first < later for first, later in zip(self.rungs, self.rungs[1:], strict=False)
        )
        if not rising or any(rung < 1 for rung in self.rungs):
            issues.append(("rungs", f"expected rising steps from 1 on, found {[*self.rungs]}"))
        return issues


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentConfig:
    """Many runs of one recipe that differ in some keys."""

    recipe: str
    """a recipe, relative to this file, or one that ships"""
    name: str = ""
    """what the report calls it; default: the file's name"""
    output_dir: str = ""
    """where runs, table and report go; default: runs/NAME"""
    set: Mapping[str, Any] = field(default_factory=dict)
    """keys of the recipe that are the same in all runs"""
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """a key of the recipe, dotted as on the command line -> its values; every combination is a run"""
    runs: tuple[Mapping[str, Any], ...] = ()
    """keys that vary together, a mapping for each; each is combined with the whole grid"""
    score: str = ""
    """STAGE.METRIC that the runs are ranked by; default: accuracy of the last eval stage, else a held-out metric"""
    best: Literal["highest", "lowest"] | None = None
    """which score is best; default: lowest for losses, tokens and leaks"""
    halving: Halving | None = None
    """stop the worse runs early"""

    def problems(self) -> list[tuple[str, str]]:
        issues = []
        if not self.grid and not self.runs:
            issues.append(("", "nothing varies: expected grid, runs or both"))
        for key, values in self.grid.items():
            if not values:
                issues.append((f"grid.{key}", "expected one value at least, found none"))
            if len({repr(value) for value in values}) < len(values):
                issues.append((f"grid.{key}", f"names a value twice: {[*values]}"))
        for number, point in enumerate(self.runs):
            issues += [
                (f"runs.{number}.{key}", "varies in grid too: give it in one of the two")
                for key in point
                if key in self.grid
            ]
            if not point:
                issues.append((f"runs.{number}", "expected keys of the recipe with values"))
        issues += [
            (f"set.{key}", "has no effect: the runs set it")
            for key in self.set
            if key in self.grid or any(key in point for point in self.runs)
        ]
        return issues

    def points(self) -> Iterator[Point]:
        """Yield what each run sets; the last key of the grid changes fastest."""
        yield from _combined([dict(point) for point in self.runs] or [{}], [*self.grid.items()])

    @property
    def vary(self) -> tuple[str, ...]:
        """The keys that vary, those of `runs` first."""
        keys = [key for point in self.runs for key in point]
        return tuple(dict.fromkeys([*keys, *self.grid]))


def _combined(
    points: Sequence[Point], grid: Sequence[tuple[str, Sequence[Any]]]
) -> Iterator[Point]:
    if not grid:
        yield from points
        return
    (key, values), *rest = grid
    yield from _combined([{**point, key: value} for point in points for value in values], rest)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentFile:
    """A file that was read: its keys, where they stand, and the recipe it names."""

    document: Document
    config: ExperimentConfig
    recipe_file: Path


def read_experiment(path: Path, overrides: Sequence[str]) -> ExperimentFile:
    """Read the file of an experiment.

    Args:
        overrides: KEY=VALUE: output_dir, name, score and best are the experiment's, every other key
            is the recipe's and the same in all runs.

    Raises:
        ConfigError: with every problem of its keys.
    """
    document = read_yaml(path)
    if "stages" in document.value or "kind" in document.value:
        raise ConfigError(
            f"{path}: is a recipe; an experiment names one with `recipe:` and varies its keys with "
            "`grid:` (docs/experiments.md)"
        )
    for override in overrides:
        _apply(document, override)
    for key in [key for key in document.value if key in _ELSEWHERE]:
        document.refuse((key,), f"unknown key (here: {_ELSEWHERE[key]})")
        del document.value[key]
    config = parse(ExperimentConfig, document.value, document)
    document.raise_problems()
    assert config is not None, "no problems means an experiment"
    has_beside = (path.parent / config.recipe).exists()
    recipe_file = find_recipe(config.recipe, folder=path.parent if has_beside else Path())
    return ExperimentFile(document=document, config=config, recipe_file=recipe_file)


def _apply(document: Document, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        document.refuse((), f"override {override!r}: expected key.sub=value")
    elif key in _OWN_KEYS:
        document.value[key] = parse_value(text)
    else:
        common = document.value.get("set") or {}
        if isinstance(common, dict):
            document.value["set"] = {**common, key: parse_value(text)}
