"""Accuracies with their intervals, and what one model gained on another.

Two accuracies differ measurably when the 95 % interval of their difference leaves out zero. That
interval is Newcombe's (1998, method 10), made of the two single intervals; it treats the two
samples as independent, which is the careful side for models that answered the same problems.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.errors import EvaluationError
from dualign.model_ref import StageRef

Z_95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """An accuracy between 0 and 1 with its 95 % interval, over `n` problems."""

    accuracy: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A difference of two accuracies, between -1 and 1, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def measurable(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelScores:
    """One model's part of metrics.json: `tasks[task][mode]` is M of docs/architecture.md."""

    model: str
    tasks: Mapping[str, Mapping[str, Mapping[str, Any]]]
    mode_switch: bool = True
    """whether the checkpoint's chat template tells the modes apart"""

    def score(self, task: str, mode: str) -> Score | None:
        """The accuracy of one task in one mode; None where the model wasn't asked."""
        cell = self.tasks.get(task, {}).get(mode)
        if cell is None or cell.get("accuracy") is None:
            return None
        n = int(cell.get("n", 0))
        low, high = cell.get("accuracy_ci") or wilson(cell["accuracy"], n)
        return Score(accuracy=cell["accuracy"], low=low, high=high, n=n)

    def gain(self, task: str) -> Change | None:
        """What thinking adds on this task: as recorded (problem by problem), else of two samples."""
        cell = self.tasks.get(task, {}).get("think", {})
        if cell.get("gain") is not None and cell.get("gain_ci"):
            low, high = cell["gain_ci"]
            return Change(value=cell["gain"], low=low, high=high)
        return change(self.score(task, "think"), self.score(task, "no_think"))


def wilson(accuracy: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927); (0, 1) where there is no observation."""
    if n == 0:
        return 0.0, 1.0
    centre = accuracy + Z_95**2 / (2 * n)
    spread = Z_95 * math.sqrt(accuracy * (1 - accuracy) / n + Z_95**2 / (4 * n**2))
    scale = 1 + Z_95**2 / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def change(after: Score | None, before: Score | None) -> Change | None:
    """`after` less `before`; None where one of them is missing."""
    if after is None or before is None:
        return None
    value = after.accuracy - before.accuracy
    down = math.hypot(after.accuracy - after.low, before.high - before.accuracy)
    up = math.hypot(after.high - after.accuracy, before.accuracy - before.low)
    return Change(value=value, low=value - down, high=value + up)


def read_scores(metrics: Mapping[str, Any], *, where: str) -> tuple[ModelScores, ...]:
    """The models of one metrics.json, in its order: the key `all`, else the one at the top."""
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
    """Each task once, in the order in which it first appears."""
    return tuple(dict.fromkeys(task for model in models for task in model.tasks))


def short_label(model: str) -> str:
    """A model's name for a table: the last part of a path, the stage of a reference to one."""
    stage = StageRef.parse(model)
    if stage:
        return stage.label
    return Path(model).name if Path(model).is_absolute() else model


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage without its sign; '-' where there is none."""
    return "-" if share is None else f"{100 * share:.{digits}f}"


def score_text(score: Score | None) -> str:
    """`80.0 [71, 87]`, in percent."""
    if score is None:
        return "-"
    return f"{percent(score.accuracy)} [{percent(score.low, 0)}, {percent(score.high, 0)}]"


def gain_text(difference: Change | None) -> str:
    """`+60.0`, in points of percent; in brackets where it isn't measurable."""
    if difference is None:
        return "-"
    value = f"{100 * difference.value:+.1f}"
    return value if difference.measurable else f"({value})"


def change_text(difference: Change | None) -> str:
    """`+60.0 [+48.2, +69.4]`, in points of percent; in brackets where it isn't measurable."""
    if difference is None:
        return "-"
    value, low, high = (100 * x for x in (difference.value, difference.low, difference.high))
    text = f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
    return text if difference.measurable else f"({text})"
