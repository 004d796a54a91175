"""What a candidate scored: one number, where it comes from, and whether two candidates differ measurably."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from dualign.data.conversation import MODES, Mode
from dualign.evaluation.metrics import Sample, summarize
from dualign.evaluation.scores import Change, Score, change, paired_change
from dualign.merging.sweep.points import Point

Objective = Literal["mean", "think", "no_think", "min"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """One candidate's result. A command gives a value alone."""

    value: float
    """the objective, or the command's number"""
    tasks: Mapping[str, Mapping[Mode, Mapping[str, Any]]] = field(default_factory=dict)
    """task -> mode -> M of docs/architecture.md"""
    right: Mapping[str, Mapping[Mode, tuple[bool, ...]]] = field(default_factory=dict)
    """task -> mode -> whether each problem was solved, in the order of the problems"""

    def mode(self, mode: Mode) -> Change:
        """The accuracy in a mode, the mean of the tasks, with its 95 % interval."""
        return mean_of([_of_task(by_mode[mode]) for by_mode in self.tasks.values()])

    def rate(self, mode: Mode, name: str) -> float:
        """A rate of the format in a mode, the mean of the tasks."""
        return fmean(float(by_mode[mode][name] or 0.0) for by_mode in self.tasks.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A point that was tried. `scored` is None where it couldn't be merged, as `failed` says."""

    point: Point
    key: str
    """under which its score is remembered"""
    scored: Scored | None
    failed: str = ""
    cached: bool = False
    seconds: float = 0.0
    """what it took now; of a cached one next to nothing"""


def scored_from(samples: Sequence[Sample], objective: Objective) -> Scored:
    """One model's judged samples -> its score."""
    parts: dict[str, dict[Mode, list[Sample]]] = {}
    for sample in samples:
        parts.setdefault(sample["task"], {mode: [] for mode in MODES})[sample["mode"]].append(
            sample
        )
    tasks = {
        task: {mode: summarize(by_mode[mode], mode) for mode in MODES}
        for task, by_mode in parts.items()
    }
    right = {
        task: {mode: tuple(bool(one["correct"]) for one in by_mode[mode]) for mode in MODES}
        for task, by_mode in parts.items()
    }
    found = Scored(value=0.0, tasks=tasks, right=right)
    return Scored(value=objective_of(found, objective).value, tasks=tasks, right=right)


def objective_of(scored: Scored, objective: Objective) -> Change:
    """The number that the sweep raises, with its 95 % interval."""
    modes = [scored.mode(mode) for mode in MODES]
    match objective:
        case "mean":
            return mean_of(modes)
        case "min":
            return min(modes, key=lambda one: one.value)
        case _:
            return scored.mode(objective)


def compare(best: Scored, other: Scored, objective: Objective) -> Change:
    """The objective of `best` less that of `other`, with a 95 % interval over the problems both answered.

    Problem by problem (paired) wherever the same mode counts on both sides; for `min`, where it is think on one side
    and no_think on the other, as two samples.
    """
    if objective == "min":
        mine, theirs = (min(MODES, key=lambda m: one.mode(m).value) for one in (best, other))
        if mine != theirs:
            found = change(_as_score(best.mode(mine)), _as_score(other.mode(theirs)))
            assert found is not None, "both scores are there"
            return found
        return _paired(best, other, mine)
    if objective == "mean":
        return mean_of([_paired(best, other, mode) for mode in MODES])
    return _paired(best, other, objective)


def _paired(best: Scored, other: Scored, mode: Mode) -> Change:
    return mean_of(
        [
            paired_change(other.right[task][mode], by_mode[mode])
            for task, by_mode in best.right.items()
        ]
    )


def mean_of(parts: Sequence[Change]) -> Change:
    """The mean of independent figures; the distances to their limits add as squares (MOVER, Zou and Donner 2008)."""
    value, count = fmean(part.value for part in parts), len(parts)
    down = math.sqrt(sum((part.value - part.low) ** 2 for part in parts)) / count
    up = math.sqrt(sum((part.high - part.value) ** 2 for part in parts)) / count
    return Change(value=value, low=value - down, high=value + up)


def _of_task(cell: Mapping[str, Any]) -> Change:
    low, high = cell["accuracy_ci"]
    return Change(value=cell["accuracy"], low=low, high=high)


def _as_score(part: Change) -> Score:
    return Score(accuracy=part.value, low=part.low, high=part.high, n=0)


def winner(candidates: Sequence[Candidate], *, lowest: bool = False) -> int | None:
    """The place of the best one; None where none could be scored.

    Ties go to the higher accuracy of the weaker mode, then to fewer leaks into no_think, then to more closed think
    blocks, then to the one that was tried first.
    """
    places = [place for place, one in enumerate(candidates) if one.scored is not None]
    if not places:
        return None
    return max(places, key=lambda place: (*_rank(candidates[place], lowest=lowest), -place))


def _rank(candidate: Candidate, *, lowest: bool) -> tuple[float, ...]:
    scored = candidate.scored
    assert scored is not None
    value = -scored.value if lowest else scored.value
    if not scored.tasks:
        return (value,)
    weaker = min(scored.mode(mode).value for mode in MODES)
    leaks, closed = scored.rate("no_think", "leak_rate"), scored.rate("think", "closed_rate")
    return round(value, 12), round(weaker, 12), -leaks, closed


def front(candidates: Sequence[Candidate]) -> set[int]:
    """The places of those that no other beats in one mode without losing in the other (Pareto)."""
    scores = {
        place: tuple(round(one.scored.mode(mode).value, 12) for mode in MODES)
        for place, one in enumerate(candidates)
        if one.scored is not None and one.scored.tasks
    }
    return {
        place
        for place, mine in scores.items()
        if not any(_beats(other, mine) for other in scores.values())
    }


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))
