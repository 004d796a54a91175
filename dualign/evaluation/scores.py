"""Accuracies, lengths and their differences, with 95 % intervals.

Two accuracies differ measurably if the interval of their difference excludes zero. On the same
problems the interval is that of Agresti and Min (`paired_change`); without the single answers it is
Newcombe's (`change`), which treats the samples as independent and so is the wider one. Lengths are
compared as a ratio of means (`ratio_change`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dualign.errors import EvaluationError
from dualign.evaluation.significance import difference_variance
from dualign.intervals import Z_95, t_95, wilson
from dualign.model_ref import StageRef
from dualign.notebook import html_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """An accuracy between 0 and 1 with its 95 % interval, over `n` problems."""

    accuracy: float
    low: float
    high: float
    n: int
    samples: int = 1
    """answers to each problem"""

    @property
    def count(self) -> str:
        """The number of problems, and of answers where each has several: `30 x 8`."""
        return str(self.n) if self.samples == 1 else f"{self.n} x {self.samples}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A number with its 95 % interval, mostly a difference; of two accuracies, between -1 and 1."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, interval: Sequence[float]) -> "Change":
        """Return the change that a record keeps as a value and its interval [low, high]."""
        low, high = interval
        return cls(value=value, low=low, high=high)

    @property
    def measurable(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelScores:
    """One model's part of metrics.json; `tasks[task][mode]` is M of docs/architecture.md."""

    model: str
    tasks: Mapping[str, Mapping[str, Mapping[str, Any]]]
    mode_switch: bool = True
    """False if the checkpoint's chat template renders both modes alike"""

    def score(self, task: str, mode: str) -> Score | None:
        """Return the accuracy on one task in one mode; None if the model wasn't evaluated on it."""
        cell = self.tasks.get(task, {}).get(mode)
        if cell is None or cell.get("accuracy") is None:
            return None
        n = int(cell.get("n", 0))
        low, high = cell.get("accuracy_ci") or wilson(cell["accuracy"], n)
        samples = cell.get("samples", 1)
        return Score(accuracy=cell["accuracy"], low=low, high=high, n=n, samples=samples)

    def gain(self, task: str) -> Change | None:
        """Return think less no_think on a task: the recorded paired change, else `change`."""
        cell = self.tasks.get(task, {}).get("think", {})
        if cell.get("gain") is not None and cell.get("gain_ci"):
            return Change.of(cell["gain"], cell["gain_ci"])
        return change(self.score(task, "think"), self.score(task, "no_think"))

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows: a row for each task and mode."""
        columns = ("task", "mode", "problems", "accuracy, % [95 %]", "closed, %", "leak, %")
        rates = ("closed_rate", "leak_rate")
        rows = [
            (task, mode, score.count, score_text(score), *(percent(cell.get(r), 0) for r in rates))
            for task, cells in self.tasks.items()
            for mode, cell in cells.items()
            if (score := self.score(task, mode)) is not None
        ]
        return html_table(columns, rows, caption=self.model, text_columns=2)


def change(after: Score | None, before: Score | None) -> Change | None:
    """Return `after` less `before` (Newcombe 1998, method 10); None if one of them is missing."""
    if after is None or before is None:
        return None
    value = after.accuracy - before.accuracy
    down = math.hypot(after.accuracy - after.low, before.high - before.accuracy)
    up = math.hypot(after.high - after.accuracy, before.accuracy - before.low)
    return Change(value=value, low=value - down, high=value + up)


def paired_change(before: Sequence[float], after: Sequence[float]) -> Change:
    """Return the accuracy of `after` less that of `before`, on the same problems in the same order.

    Of right and wrong answers the interval is that of Agresti and Min (2005): Wald's, after adding
    half an observation to each cell of the 2 x 2 table. It depends on the problems that exactly one
    side solves. Of shares of several answers and of graded scores it is Student's t of the
    problems' differences, which are independent where the answers to a problem aren't (Miller 2024,
    arXiv 2411.00640, eq. 7); without any spread it is Agresti and Min's again. Without problems it
    is (-1, 1).
    """
    differences = [later - earlier for earlier, later in zip(before, after, strict=True)]
    if not differences:
        return Change(value=0.0, low=-1.0, high=1.0)
    value = fmean(differences)
    graded = any(score not in (0, 1) for score in (*before, *after))
    if graded and len(differences) > 1 and (error := stdev(differences)):
        center, spread = value, t_95(len(differences) - 1) * error / math.sqrt(len(differences))
    else:
        n = len(differences) + 2
        center = sum(differences) / n
        spread = Z_95 * math.sqrt(difference_variance(differences) / n)
    return Change(value=value, low=max(-1.0, center - spread), high=min(1.0, center + spread))


def mean_of(parts: Sequence[Change]) -> Change:
    """Return the mean of independent numbers.

    The distances to their limits add as squares (MOVER, Zou and Donner 2008).
    """
    value, count = fmean(part.value for part in parts), len(parts)
    down = math.sqrt(sum((part.value - part.low) ** 2 for part in parts)) / count
    up = math.sqrt(sum((part.high - part.value) ** 2 for part in parts)) / count
    return Change(value=value, low=value - down, high=value + up)


def mean_interval(values: Sequence[float]) -> Change | None:
    """Return the mean with its normal 95 % interval; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean, spread = fmean(values), Z_95 * stdev(values) / math.sqrt(len(values))
    return Change(value=mean, low=mean - spread, high=mean + spread)


def ratio_change(before: Sequence[float], after: Sequence[float]) -> Change | None:
    """Return mean(after) / mean(before) - 1 on the same problems in the same order.

    The interval is that of a ratio of paired means, linearized (Cochran 1977, section 6.3): the
    spread of after - ratio * before. None for fewer than two problems, or if `before` has less than
    1 on average: a share of nothing says nothing.
    """
    if len(before) < 2 or fmean(before) < 1:
        return None
    ratio = fmean(after) / fmean(before)
    rests = [later - ratio * earlier for earlier, later in zip(before, after, strict=True)]
    spread = Z_95 * stdev(rests) / math.sqrt(len(rests)) / fmean(before)
    return Change(value=ratio - 1, low=ratio - 1 - spread, high=ratio - 1 + spread)


def read_scores(metrics: Mapping[str, Any], *, where: str) -> tuple[ModelScores, ...]:
    """Return the models of a metrics.json in order: those under `all`, else the top-level one."""
    parts = metrics.get("all") or [metrics]
    for part in parts:
        if "model" not in part or "tasks" not in part:
            raise EvaluationError(
                f"{where}: found an entry with the keys {sorted(part)}; expected 'model' and "
                "'tasks'. Run the evaluation again with this version."
            )
    return tuple(
        ModelScores(
            model=str(part["model"]),
            tasks=part["tasks"],
            mode_switch=part.get("mode_switch", True),
        )
        for part in parts
    )


def task_names(models: Sequence[ModelScores]) -> tuple[str, ...]:
    """Return each task once, in order of first appearance."""
    return tuple(dict.fromkeys(task for model in models for task in model.tasks))


def short_label(model: str) -> str:
    """Shorten a model's name for a table: the last part of a path, the name of a stage."""
    stage = StageRef.parse(model)
    if stage:
        return stage.label
    return Path(model).name if Path(model).is_absolute() else model


def percent(share: float | None, digits: int = 1) -> str:
    """Format a share as a percentage without the sign; '-' if there is none."""
    return "-" if share is None else f"{100 * share:.{digits}f}"


def score_text(score: Score | None) -> str:
    """Format a score in percent: `80.0 [71, 87]`."""
    if score is None:
        return "-"
    return f"{percent(score.accuracy)} [{percent(score.low, 0)}, {percent(score.high, 0)}]"


def gain_text(difference: Change | None) -> str:
    """Format a change in percentage points: `+60.0`; `(+1.0)` if it isn't measurable."""
    if difference is None:
        return "-"
    value = f"{100 * difference.value:+.1f}"
    return value if difference.measurable else f"({value})"


def change_text(difference: Change | None, digits: int = 1) -> str:
    """Format a change and its interval in percentage points: `+60.0 [+48.2, +69.4]`; in parentheses
    if it isn't measurable.

    Args:
        digits: of the limits, after the point.
    """
    if difference is None:
        return "-"
    value, low, high = (100 * x for x in (difference.value, difference.low, difference.high))
    text = f"{value:+.1f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    return text if difference.measurable else f"({text})"
