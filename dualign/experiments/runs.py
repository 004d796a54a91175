"""The file of an experiment -> its runs: a recipe each, checked before the first one starts."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign import engine
from dualign.config import Document, dotted
from dualign.engine import StageStatus
from dualign.errors import ConfigError, excerpt
from dualign.experiments.config import ExperimentConfig, ExperimentFile, Point
from dualign.experiments.measures import (
    Measure,
    default_metric,
    default_score,
    incomparable,
    read_measure,
)
from dualign.fingerprint import Digests
from dualign.recipe import Recipe, load_recipe
from dualign.stages import stage_kind

_MAX_RUNS = 1000
_MAX_NAME = 80
_FIXED = {
    "name": "the experiment names the runs",
    "output_dir": "each run has a folder in the experiment's output_dir",
    "stages": "name a key of a stage: STAGE.KEY",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run of the recipe."""

    name: str
    """its folder"""
    label: str
    point: Point
    recipe: Recipe
    statuses: tuple[StageStatus, ...]
    """of its stages, as they were when the experiment was read"""

    def status(self, stage: str) -> StageStatus:
        return next(status for status in self.statuses if status.entry.name == stage)

    @property
    def setting(self) -> str:
        """What the run sets apart from seeds: runs of one setting differ by chance alone."""
        return json.dumps({key: self.point[key] for key in self.point if not _is_seed(key)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """An experiment that can run: every recipe is valid, and the runs differ."""

    name: str
    file: Path
    output_dir: Path
    config: ExperimentConfig
    recipe_file: Path
    finished: tuple[Path, ...]
    """run directories of the recipe by itself, whose stages are shared if they are the same"""
    runs: tuple[Run, ...]
    score: Measure
    metric: Measure | None
    """of halving"""


def _is_seed(key: str) -> bool:
    """Return whether a key is a seed: `seed`, `apo.seed`."""
    return key.rpartition(".")[2] == "seed"


def plan_runs(file: ExperimentFile, *, remember: bool = True) -> Experiment:
    """Read the recipe of every run, and check that they can be told apart and ranked.

    Args:
        remember: keep the digests of files in the output folder.

    Raises:
        ConfigError: with the key and value of the experiment that a recipe can't have.
    """
    config, document = file.config, file.document
    name = config.name or Path(document.file).stem
    out = Path(config.output_dir or f"runs/{name}")
    common = _overrides(config.set)
    source, _ = _without_points(file.recipe_file, common)
    points = [*config.points()]
    if len(points) > _MAX_RUNS:
        raise ConfigError(f"{document.file}: {len(points)} runs; expected {_MAX_RUNS} at most")
    recipes = _recipes(file, points, common, out)
    digests = Digests(out / ".digests.json" if remember else None)
    runs = []
    for point, recipe in zip(points, recipes, strict=True):
        statuses = engine.statuses(recipe, remember=False, digests=digests)
        label = _label(point, config.vary)
        runs.append(
            Run(
                name=recipe.output_dir.name,
                label=label,
                point=point,
                recipe=recipe,
                statuses=tuple(statuses),
            )
        )
    _check_differences(document, runs)
    score, metric = _measures(document, config, runs)
    document.raise_problems()
    assert score is not None, "no problems means a score"
    if remember:
        out.mkdir(parents=True, exist_ok=True)
        digests.save()
    return Experiment(
        name=name,
        file=Path(document.file),
        output_dir=out,
        config=config,
        recipe_file=file.recipe_file,
        finished=_finished_alone(source),
        runs=tuple(runs),
        score=score,
        metric=metric,
    )


def _without_points(file: Path, common: Sequence[str]) -> tuple[Recipe | None, str]:
    """Return the recipe with the common overrides alone, or what is wrong with it."""
    try:
        return load_recipe(file, common), ""
    except ConfigError as error:
        return None, str(error)


def _finished_alone(recipe: Recipe | None) -> tuple[Path, ...]:
    if recipe is None:  # valid only with what the runs set
        return ()
    return tuple(recipe.output_dir / entry.name for entry in recipe.stages)


def _overrides(point: Mapping[str, Any]) -> tuple[str, ...]:
    """`{"apo.train.beta": 0.1}` -> `("apo.train.beta=0.1",)`; JSON is YAML."""
    return tuple(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in point.items())


def _recipes(
    file: ExperimentFile, points: Sequence[Point], common: Sequence[str], out: Path
) -> list[Recipe]:
    document, keys = file.document, file.config.vary
    for key in keys:
        first = key.split(".")[0]
        if first in _FIXED:
            document.refuse(_place(document, key), f"can't vary: {_FIXED[first]}")
        if key.endswith(".pause_at_step"):
            document.refuse(_place(document, key), "can't vary: `halving` pauses runs")
    document.raise_problems()
    names = _names(points, keys)
    recipes = []
    for name, point in zip(names, points, strict=True):
        folder = json.dumps(str(out / "runs" / name), ensure_ascii=False)
        overrides = (*common, *_overrides(point), f"output_dir={folder}")
        try:
            recipes.append(load_recipe(file.recipe_file, overrides))
        except ConfigError as error:
            _refuse(file, point, common, error)
    document.raise_problems()
    return recipes


def _refuse(file: ExperimentFile, point: Point, common: Sequence[str], error: ConfigError) -> None:
    """Say which key and value of a run its recipe refuses; all together if none does alone.

    Raises:
        ConfigError: the recipe is wrong whatever the run sets.
    """
    _, without = _without_points(file.recipe_file, common)
    if without == str(error):
        raise error
    culprits = 0
    for key, value in point.items():
        _, problem = _without_points(file.recipe_file, (*common, *_overrides({key: value})))
        if problem and problem != without:
            culprits += 1
            place, words = _place(file.document, key), _words(problem)
            if not any(
                f": {dotted(place)}: " in earlier and earlier.endswith(words)
                for earlier in file.document.problems
            ):
                file.document.refuse(place, f"{excerpt(value)}: {words}")
    if not culprits:
        label = _label(point, file.config.vary)
        problem = f"the run with {label}: {_words(str(error))}"
        file.document.refuse(("grid",), problem)


def _place(document: Document, key: str) -> tuple[str | int, ...]:
    """Return where a key that varies stands in the file."""
    if key in (document.value.get("grid") or {}):
        return ("grid", key)
    for number, point in enumerate(document.value.get("runs") or ()):
        if key in point:
            return ("runs", number, key)
    return ("grid",)


def _words(problem: str) -> str:
    """Return the problems of a recipe in one line, without the heading that counts them."""
    lines = [line.strip() for line in problem.splitlines()]
    return "; ".join(lines[1:] or lines)


def _names(points: Sequence[Point], keys: Sequence[str]) -> list[str]:
    """Return a folder for each run, after what it sets: `beta=0.1_seed=0`.

    Names say all that varies, so a wider grid keeps them.
    """
    short = short_keys(keys)
    names = []
    for point in points:
        text = "_".join(f"{short[key]}={_shown(point[key])}" for key in keys if key in point)
        name = re.sub(r"[^A-Za-z0-9._=-]+", "-", text).strip(".-") or "run"
        if len(name) > _MAX_NAME or name != text:
            digest = hashlib.sha256(json.dumps(dict(point), default=str).encode()).hexdigest()[:8]
            name = f"{name[:_MAX_NAME]}_{digest}"
        names.append(name)
    return names


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Return the shortest endings that tell the keys apart: `apo.train.beta` -> `beta`."""
    parts = {key: key.split(".") for key in keys}
    for length in range(1, max(map(len, parts.values()), default=1) + 1):
        short = {key: ".".join(part[-length:]) for key, part in parts.items()}
        if len(set(short.values())) == len(short):
            return short
    return {key: key for key in keys}


def _label(point: Point, keys: Sequence[str]) -> str:
    """`beta 0.1, seed 0`"""
    short = short_keys(keys)
    return ", ".join(f"{short[key]} {_shown(point[key])}" for key in keys if key in point)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _check_differences(document: Document, runs: Sequence[Run]) -> None:
    """Refuse runs that would do the same."""
    seen: dict[tuple[str, ...], Run] = {}
    for run in runs:
        fingerprints = tuple(status.fingerprint for status in run.statuses)
        earlier = seen.setdefault(fingerprints, run)
        if earlier is not run:
            keys = [key for key in run.point if run.point[key] != earlier.point.get(key)]
            document.refuse(
                _place(document, keys[0]) if keys else ("runs",),
                f"the runs {earlier.label!r} and {run.label!r} do the same: "
                f"{', '.join(keys) or 'nothing'} changes no stage's result",
            )
            return


def _measures(
    document: Document, config: ExperimentConfig, runs: Sequence[Run]
) -> tuple[Measure | None, Measure | None]:
    recipe = runs[0].recipe
    text = config.score or default_score(recipe)
    lower = None if config.best is None else config.best == "lowest"
    if not text:
        document.refuse((), "the recipe neither trains nor evaluates: there is nothing to rank")
        return None, None
    score, problem = read_measure(recipe, text, lower=lower)
    problem = problem or (score is not None and incomparable(score, config.vary)) or ""
    if problem:
        hint = "" if config.score else " (the default score; name another with `score`)"
        document.refuse(("score",), f"{problem}{hint}")
    return score, _halving_metric(document, config, recipe)


def _halving_metric(document: Document, config: ExperimentConfig, recipe: Recipe) -> Measure | None:
    halving = config.halving
    if halving is None:
        return None
    training = {entry.name: entry for entry in recipe.stages if stage_kind(entry.kind).trains}
    if halving.stage not in training:
        expected = f"expected a training stage: {', '.join(training) or 'the recipe has none'}"
        document.refuse(("halving", "stage"), f"{expected}; found {halving.stage!r}")
        return None
    entry = training[halving.stage]
    evaluations = [e.name for e in recipe.stages if stage_kind(e.kind).evaluates]
    text = f"{entry.name}.{halving.metric or default_metric(entry)}"
    if halving.metric.partition(".")[0] in evaluations:
        text = halving.metric
    metric, problem = read_measure(recipe, text, lower=None)
    problem = problem or (metric is not None and incomparable(metric, config.vary)) or ""
    if problem:
        document.refuse(("halving", "metric"), problem)
    steps = entry.config.train.get("max_steps", -1)
    if 0 < steps <= halving.rungs[-1]:
        document.refuse(
            ("halving", "rungs"), f"stage {entry.name} ends at step {steps}: expected rungs below"
        )
    if entry.config.train.get("save_only_model"):
        document.refuse(
            ("halving", "stage"), f"{entry.name}.train.save_only_model: a paused run couldn't go on"
        )
    return metric
