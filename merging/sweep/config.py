"""A sweep in a recipe: a merge with placeholders, their values, and how a candidate is scored.

    merge:
      models:
        - {model: runs/apo, weight: $a}
        - {model: runs/long-context, weight: 1 - $a}
    vary: {a: [0.7, 0.8, 0.9, 1.0]}
    score: {tasks: [tasks/sums.yaml], rows: 40}

It imports nothing heavy: recipes load from here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dualign.config import nearest
from dualign.evaluation.config import EvalConfig
from dualign.merging.config import MergeInput
from dualign.merging.sweep.points import (
    Point,
    Problem,
    invalid_expressions,
    placeholders,
    read_merge,
)

Kind = Literal["grid", "golden", "greedy_soup", "cma"]
_MAX_VALIDATED_POINTS = 256  # of each name, whose merges are checked before anything starts


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Every number from `low` to `high`."""

    low: float
    """the lowest value"""
    high: float
    """the highest value"""
    points: int | None = None
    """for a grid: the number of values, evenly spaced, both ends included"""

    def problems(self) -> list[tuple[str, str]]:
        issues = []
        if not self.low < self.high:
            issues.append(("high", f"expected more than low ({self.low:g}), found {self.high:g}"))
        if self.points is not None and self.points < 2:
            issues.append(("points", f"expected 2 or more, found {self.points}"))
        return issues

    def values(self) -> tuple[float, ...]:
        """Return the points of the grid, rounded: 0.3, not 0.30000000000000004."""
        steps = (self.points or 2) - 1
        width = self.high - self.low
        return tuple(round(self.low + width * i / steps, 12) for i in range(steps + 1))

    def value_at(self, share: float) -> float:
        """Return the number at `share` of the way from low to high, rounded to 9 digits."""
        return round(self.low + (self.high - self.low) * share, 9)


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepStage:
    """Many merges of the same models, each scored, and the best one written."""

    name: str
    """names the stage and its run directory"""
    kind: Literal["sweep"] = "sweep"
    """what the stage does"""
    merge: Mapping[str, Any] | tuple[Mapping[str, Any], ...]
    """as in a merge stage, or in mergekit's form (a list of those is a merge of merges), with $NAME or 1 - $NAME for values that vary"""
    vary: Mapping[str, Range | tuple[Any, ...]] = field(default_factory=dict)
    """for each NAME a list of values, or {low, high}; a grid needs {low, high, points}"""
    search: Kind = "grid"
    """grid: every combination. golden: one range with one peak. cma: several ranges. greedy_soup: which models to average"""
    budget: int | None = None
    """golden and cma: the maximum number of candidates"""
    tolerance: float = 0.02
    """golden: stop when the interval of the peak is this share of the range"""
    score: EvalConfig | None = None
    """the tasks that each candidate is evaluated on in both modes, as in an eval stage"""
    command: str | None = None
    """instead of score: a shell command that gets the candidate's folder as {model}; the last number it prints is the score"""
    files: tuple[str, ...] = ()
    """files that the command reads, besides the candidate; its scores are reused until they change"""
    objective: Literal["mean", "think", "no_think", "min"] = "mean"
    """the number to maximize: accuracy of one mode, the mean of both, or the lower of both"""
    best: Literal["highest", "lowest"] = "highest"
    """of a command's numbers"""

    @property
    def models(self) -> tuple[MergeInput, ...]:
        """The models that are merged; the merged model has the architecture of the first."""
        merge, _ = read_merge(self.merge, self.first_point(), self.name)
        return tuple(MergeInput(model=name) for name in merge.models()) if merge else ()

    def first_point(self) -> Point:
        """Return the point in the middle of all values; {} without any."""
        return next(self._validated_points(), {})

    def _validated_points(self) -> Iterator[Point]:
        """Yield the points to check: each value of a name, the other names at their middle.

        vary {a: [1, 2, 3], b: [4, 5]} gives (2, 5), (1, 5), (2, 5), (3, 5), (2, 4), (2, 5).
        """
        samples = {name: _sample(values) for name, values in self.vary.items()}
        if not all(samples.values()):
            return
        middle = {name: sample[len(sample) // 2] for name, sample in samples.items()}
        yield middle
        for name, sample in samples.items():
            yield from ({**middle, name: value} for value in sample[:_MAX_VALIDATED_POINTS])

    def in_words(self) -> str:
        """Describe the search and the scores, for `dualign plan`."""
        scorer = (
            "the command" if self.score is None else f"{len(self.score.tasks)} task(s), both modes"
        )
        return f"{self.search} over {', '.join(self.vary) or 'the models'}; each candidate scored by {scorer}"

    def problems(self) -> list[tuple[str, str]]:
        issues = [*self._name_problems(), *self._search_problems(), *self._score_problems()]
        return issues or self._merge_problems()

    def _name_problems(self) -> Iterator[tuple[str, str]]:
        used = placeholders(self.merge)
        for key, name in used:
            if name not in self.vary:
                yield f"merge.{key}", f"${name}: vary has no such name{nearest(name, [*self.vary])}"
        for name in self.vary:
            if name not in {placeholder for _, placeholder in used}:
                yield f"vary.{name}", f"has no effect: merge has no ${name}"
        for key, text in invalid_expressions(self.merge, [*self.vary]):
            yield f"merge.{key}", f"{text!r}: expected $NAME or 1 - $NAME alone"

    def _search_problems(self) -> Iterator[tuple[str, str]]:
        if self.search == "greedy_soup":
            yield from self._soup_problems()
        elif not self.vary:
            yield "vary", "expected one name at least, with its values"
        for name, values in self.vary.items():
            if self.search in ("golden", "cma"):
                if not isinstance(values, Range):
                    yield f"vary.{name}", f"{self.search} needs a range: {{low: ..., high: ...}}"
                elif values.points is not None:
                    yield f"vary.{name}.points", f"has no effect with search: {self.search}"
            elif isinstance(values, Range) and values.points is None:
                yield f"vary.{name}", "a grid needs points, the number of values; or list them"
            elif isinstance(values, tuple) and not values:
                yield f"vary.{name}", "expected one value at least"
        if self.search == "golden" and len(self.vary) > 1:
            yield (
                "search",
                f"golden takes one name in vary, found {len(self.vary)}; use cma or grid",
            )
        yield from self._budget_problems()

    def _soup_problems(self) -> Iterator[tuple[str, str]]:
        if self.vary:
            yield "vary", "has no effect: greedy_soup chooses among the models of merge"
            return
        merge, problems = read_merge(self.merge, {}, self.name)
        if merge is None or problems:
            return
        if merge.method != "linear":
            yield "search", f"greedy_soup averages models: the method is linear, not {merge.method}"
        elif len(merge.slices[0].sources) < 2:
            yield "search", "greedy_soup needs two models at least"

    def _budget_problems(self) -> Iterator[tuple[str, str]]:
        limited = self.search in ("golden", "cma")
        if not limited and self.budget is not None:
            yield "budget", f"has no effect with search: {self.search}"
        if self.search == "cma" and self.budget is None:
            yield "budget", "cma needs a budget: the number of candidates"
        if limited and self.budget is not None and self.budget < 2:
            yield "budget", f"expected 2 or more, found {self.budget}"
        if not 0 < self.tolerance < 1:
            yield "tolerance", f"expected a share between 0 and 1, found {self.tolerance:g}"

    def _score_problems(self) -> Iterator[tuple[str, str]]:
        if (self.score is None) == (self.command is None):
            yield "", "expected score or command, one of the two"
        if self.score is not None and self.score.backend != "transformers":
            yield "score.backend", "candidates live in memory, where vllm can't see them"
        if self.command is None:
            for key, is_set in (("files", self.files), ("best", self.best != "highest")):
                if is_set:
                    yield key, "has no effect without command"
        else:
            if "{model}" not in self.command:
                yield "command", "expected {model} in it, where the candidate's folder goes"
            if self.objective != "mean":
                yield "objective", "has no effect: a command's number is the score"

    def _merge_problems(self) -> list[tuple[str, str]]:
        """Return each problem once; with a point that has it, unless all points do."""
        points = list(self._validated_points()) or [{}]
        points_by_problem: dict[Problem, list[Point]] = {}
        for point in points:
            for problem in read_merge(self.merge, point, self.name)[1]:
                points_by_problem.setdefault(problem, []).append(point)
        issues = []
        for (key, message), where in points_by_problem.items():
            text = ", ".join(f"{name} = {value}" for name, value in where[0].items())
            at = f" (at {text})" if text and len(where) < len(points) else ""
            issues.append((".".join(map(str, ("merge", *key))), message + at))
        return issues


def _sample(values: Range | tuple[Any, ...]) -> tuple[Any, ...]:
    """Return all values of a list or grid; ends and middle of another range."""
    if isinstance(values, Range):
        return values.values() if values.points else (values.low, values.value_at(0.5), values.high)
    return values
