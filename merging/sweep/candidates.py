"""Candidates of a sweep: their scores, the intervals of differences, and the best one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from dualign.data.conversation import MODES, Mode
from dualign.evaluation.metrics import summarize
from dualign.evaluation.sampled import Sample, by_budget, problem_means
from dualign.evaluation.scores import Change, Score, change, mean_of, paired_change
from dualign.merging.sweep.points import Point

Objective = Literal["mean", "think", "no_think", "min"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateScore:
    """One candidate's result. A command gives a value alone."""

    value: float
    """the objective, or the command's number"""
    tasks: Mapping[str, Mapping[Mode, Mapping[str, Any]]] = field(default_factory=dict)
    """task -> mode -> M of docs/architecture.md"""
    right: Mapping[str, Mapping[Mode, tuple[float, ...]]] = field(default_factory=dict)
    """task -> mode -> what each problem's answers are worth (0 or 1, or a mean), in their order"""

    def accuracy(self, mode: Mode) -> Change:
        """Return the accuracy in a mode, the mean of the tasks, with its 95 % interval."""
        return mean_of([_accuracy(by_mode[mode]) for by_mode in self.tasks.values()])

    def rate(self, mode: Mode, name: str) -> float:
        """Return a rate of the format in a mode, the mean of the tasks."""
        return fmean(float(by_mode[mode][name] or 0.0) for by_mode in self.tasks.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A point and its score."""

    point: Point
    key: str
    """of its score in the cache"""
    score: CandidateScore | None
    """None: it can't be merged"""
    failure: str = ""
    """why it can't be merged"""
    cached: bool = False
    seconds: float = 0.0
    """time taken in this run, next to nothing if it was cached"""


def score_samples(samples: Sequence[Sample], objective: Objective) -> CandidateScore:
    """Return the score of one model from its judged samples."""
    parts: dict[str, dict[Mode, list[Sample]]] = {}
    for sample in by_budget(samples)[None]:
        by_mode = parts.setdefault(sample["task"], {mode: [] for mode in MODES})
        by_mode[sample["mode"]].append(sample)
    tasks = {
        task: {mode: summarize(by_mode[mode], mode) for mode in MODES}
        for task, by_mode in parts.items()
    }
    right = {
        task: {mode: tuple(problem_means(by_mode[mode]).values()) for mode in MODES}
        for task, by_mode in parts.items()
    }
    value = objective_of(CandidateScore(value=0.0, tasks=tasks), objective).value
    return CandidateScore(value=value, tasks=tasks, right=right)


def objective_of(score: CandidateScore, objective: Objective) -> Change:
    """Return the number that the sweep raises, with its 95 % interval."""
    accuracies = [score.accuracy(mode) for mode in MODES]
    match objective:
        case "mean":
            return mean_of(accuracies)
        case "min":
            return min(accuracies, key=lambda accuracy: accuracy.value)
        case _:
            return score.accuracy(objective)


def compare(first: CandidateScore, other: CandidateScore, objective: Objective) -> Change:
    """Return the objective of `first` minus that of `other`, with its 95 % interval.

    Paired by problem if the same mode counts on both sides. For `min`, where it may be think on one
    side and no_think on the other, as two samples.
    """
    if objective == "min":
        first_mode, other_mode = (
            min(MODES, key=lambda mode: score.accuracy(mode).value) for score in (first, other)
        )
        if first_mode != other_mode:
            difference = change(
                _as_score(first.accuracy(first_mode)), _as_score(other.accuracy(other_mode))
            )
            assert difference is not None, "both scores are there"
            return difference
        return _paired(first, other, first_mode)
    if objective == "mean":
        return mean_of([_paired(first, other, mode) for mode in MODES])
    return _paired(first, other, objective)


def _paired(first: CandidateScore, other: CandidateScore, mode: Mode) -> Change:
    return mean_of(
        [
            paired_change(other.right[task][mode], by_mode[mode])
            for task, by_mode in first.right.items()
        ]
    )


def _accuracy(metrics: Mapping[str, Any]) -> Change:
    low, high = metrics["accuracy_ci"]
    return Change(value=metrics["accuracy"], low=low, high=high)


def _as_score(part: Change) -> Score:
    return Score(accuracy=part.value, low=part.low, high=part.high, n=0)


def winner(candidates: Sequence[Candidate], *, lowest: bool = False) -> int | None:
    """Return the index of the best candidate; None if none could be scored.

    Ties go to the higher accuracy of the weaker mode, then to fewer leaks into no_think, then to
    more closed think blocks, then to the earlier candidate.
    """
    indices = [i for i, candidate in enumerate(candidates) if candidate.score is not None]
    if not indices:
        return None
    return max(indices, key=lambda i: (*_rank(candidates[i], lowest=lowest), -i))


def _rank(candidate: Candidate, *, lowest: bool) -> tuple[float, ...]:
    score = candidate.score
    assert score is not None
    value = -score.value if lowest else score.value
    if not score.tasks:
        return (value,)
    weaker = min(score.accuracy(mode).value for mode in MODES)
    leaks, closed = score.rate("no_think", "leak_rate"), score.rate("think", "closed_rate")
    return round(value, 12), round(weaker, 12), -leaks, closed


def pareto_front(candidates: Sequence[Candidate]) -> set[int]:
    """Return the indices of candidates that no other dominates in the two modes."""
    scores = {
        i: tuple(round(candidate.score.accuracy(mode).value, 12) for mode in MODES)
        for i, candidate in enumerate(candidates)
        if candidate.score is not None and candidate.score.tasks
    }
    return {
        i
        for i, score in scores.items()
        if not any(_beats(other, score) for other in scores.values())
    }


def _beats(first: Sequence[float], other: Sequence[float]) -> bool:
    return first != other and all(a >= b for a, b in zip(first, other, strict=True))
