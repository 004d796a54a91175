"""What a run is ranked by: `STAGE.METRIC`, read from what the stage leaves.

apo.margin                      held-out margin of chosen over rejected, in nats (rewards / beta)
apo.margin/think                of one mode
sft.loss                        held-out loss
eval.accuracy                   the mean of all tasks and both modes
eval.sums.think.accuracy        of one task in one mode
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from dualign.config import nearest
from dualign.data.conversation import MODES
from dualign.errors import EvaluationError
from dualign.evaluation.config import pairs_name
from dualign.recipe import Recipe, StageEntry
from dualign.rundir import read_run
from dualign.stages import stage_kind
from dualign.tasks.table import load_tasks, source_of

_DEFAULT_BETA = 0.1  # of TRL's DPOConfig
_SFT_METRICS = ("loss",)
_PAIR_METRICS = ("margin", "loss", "rewards/accuracies", "rewards/margins")
_EVAL_METRICS = (
    "accuracy",
    "closed_rate",
    "leak_rate",
    "cut_in_think_rate",
    "unfinished_rate",
    "think_tokens",
    "answer_tokens",
    "margin",
)
_LOWER = (
    "loss",
    "leak_rate",
    "cut_in_think_rate",
    "unfinished_rate",
    "think_tokens",
    "answer_tokens",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A metric of a stage; `lower` is better or not."""

    stage: str
    key: str
    """without the stage, and without `eval_`"""
    lower: bool

    @property
    def name(self) -> str:
        return f"{self.stage}.{self.key}"

    def better(self, value: float) -> float:
        """Return a number that is higher the better the value is."""
        return -value if self.lower else value


def default_score(recipe: Recipe) -> str:
    """Return the accuracy of the last eval stage, else the held-out metric of the last training stage."""
    for entry in reversed(recipe.stages):
        if stage_kind(entry.kind).evaluates:
            return f"{entry.name}.accuracy"
    training = [entry for entry in recipe.stages if stage_kind(entry.kind).trains]
    return f"{training[-1].name}.{default_metric(training[-1])}" if training else ""


def default_metric(entry: StageEntry) -> str:
    """Return the metric of a training stage that is comparable between settings."""
    return "margin" if stage_kind(entry.kind).takes_pairs else "loss"


def read_measure(recipe: Recipe, text: str, *, lower: bool | None) -> tuple[Measure | None, str]:
    """Return the measure that `STAGE.METRIC` names, or what is wrong with it."""
    stage, dot, key = text.partition(".")
    entries = {entry.name: entry for entry in recipe.stages}
    known: Sequence[str]
    if not dot or stage not in entries:
        known = [name for name, entry in entries.items() if _has_metrics(entry)]
        return (
            None,
            f"{text!r}: expected STAGE.METRIC, found no stage {stage!r}{nearest(stage, known)}",
        )
    entry, key = entries[stage], key.removeprefix("eval_")
    kind = stage_kind(entry.kind)
    if kind.evaluates:
        known, metric = _EVAL_METRICS, key.rpartition(".")[2]
    elif kind.trains:
        metric, slash, mode = key.rpartition("/")
        metric = metric if slash and mode in MODES else key
        known = _PAIR_METRICS if kind.takes_pairs else _SFT_METRICS
        if problem := _not_held_out(entry):
            return None, problem
    else:
        return None, f"{text!r}: stage {stage} is of kind {entry.kind}, which has no metrics"
    if kind.evaluates and (problem := _not_asked(entry, key)):
        return None, f"{text!r}: {problem}"
    if metric not in known:
        return None, f"{text!r}: no metric {metric!r} of {entry.kind}{nearest(metric, known)}"
    return Measure(stage=stage, key=key, lower=metric in _LOWER if lower is None else lower), ""


def _not_asked(entry: StageEntry, key: str) -> str:
    """Return why an eval stage has no such task, as far as its files are here."""
    *parts, metric = key.split(".")
    task = ".".join(parts[:-1] if parts and parts[-1] in MODES else parts)
    pairs = [pairs_name(source) for source in entry.config.pairs]
    if not task:
        return "name the pairs: STAGE.PAIRS.margin" if metric == "margin" else ""
    if not all(source_of(task) or Path(task).is_file() for task in entry.config.tasks):
        return ""  # an earlier stage writes them
    names = [*pairs, *(loaded.name for loaded in load_tasks(entry.config.tasks))]
    return "" if task in names else f"no task {task!r}{nearest(task, names)}"


def _has_metrics(entry: StageEntry) -> bool:
    kind = stage_kind(entry.kind)
    return kind.evaluates or kind.trains


def _not_held_out(entry: StageEntry) -> str:
    """Return why a training stage has no held-out metrics at its end."""
    if not entry.config.data.validates:
        return f"stage {entry.name} holds no rows out: set its data.validation_rows"
    if entry.config.train.get("eval_strategy", "no") in ("no", False):
        return f"stage {entry.name} never measures its held-out rows: set its train.eval_strategy"
    return ""


def incomparable(measure: Measure, vary: Sequence[str]) -> str:
    """Return why a metric can't rank runs that differ in these keys."""
    base = measure.key.split("/")[0]
    if base not in ("loss", "rewards") or "accuracies" in measure.key:
        return ""
    scaled = ("train.beta", "train.loss_type", "train.loss_weights", "train.label_smoothing")
    for key in vary:
        if key.endswith(scaled) and (base == "loss" or key.endswith("train.beta")):
            return f"its size depends on {key}, which varies; use {measure.stage}.margin, in nats"
    return ""


def beta_of(config: Any) -> float:
    """Return the beta of a preference stage, from its dataclass or run.json."""
    train = config.get("train", {}) if isinstance(config, Mapping) else config.train
    return float(train.get("beta", _DEFAULT_BETA))


def training_value(validation: Mapping[str, Any], key: str, *, beta: float) -> float | None:
    """Return a held-out metric of a training stage; None if it wasn't measured.

    A margin in nats is that of the rewards over beta: comparable between values of beta.
    """
    name, scale = key, 1.0
    if key.split("/")[0] == "margin":
        name, scale = f"rewards/margins{key.removeprefix('margin')}", beta
    value = validation.get(f"eval_{name}")
    return None if value is None else float(value) / scale


def evaluation_value(metrics: Mapping[str, Any], key: str, *, where: str) -> float:
    """Return a metric of the last model in metrics.json, the mean of the tasks and modes it spans.

    Raises:
        EvaluationError: no task of that name was evaluated, or it has no such metric.
    """
    *parts, metric = key.split(".")
    modes: Sequence[str] = MODES
    if parts and parts[-1] in MODES:
        modes = (parts.pop(),)
    task = ".".join(parts)
    by_task = {**metrics.get("pairs", {}), **metrics["tasks"]}
    if task and task not in by_task:
        raise EvaluationError(f"{where}: the score {key} names no task{nearest(task, [*by_task])}")
    cells = [by_task[task]] if task else [*metrics["tasks"].values()]
    values = [*_numbers(cells, modes, metric)]
    if not values:
        raise EvaluationError(f"{where}: no {metric} for the score {key}")
    return fmean(values)


def _numbers(
    cells: Sequence[Mapping[str, Any]], modes: Sequence[str], metric: str
) -> Iterator[float]:
    """Yield a metric of each task and mode; of lengths, which are percentiles, the mean."""
    for by_mode in cells:
        for mode in modes:
            value = by_mode.get(mode, {}).get(metric)
            if isinstance(value, Mapping):
                value = value["mean"]
            if value is not None:
                yield float(value)


def measured(measure: Measure, entry: StageEntry, run_dir: Path) -> float:
    """Return the value of a finished stage.

    Raises:
        EvaluationError: the stage has no such metric.
    """
    if stage_kind(entry.kind).evaluates:
        path = run_dir / "metrics.json"
        metrics = json.loads(path.read_text(encoding="utf-8"))
        return evaluation_value(metrics, measure.key, where=str(path))
    validation = read_run(run_dir).get("metrics", {}).get("validation") or {}
    value = training_value(validation, measure.key, beta=beta_of(entry.config))
    if value is None:
        raise EvaluationError(
            f"{run_dir}: {measure.key} wasn't measured on held-out rows; there: "
            f"{', '.join(sorted(validation)) or 'nothing'}"
        )
    return value
