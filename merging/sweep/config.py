"""A sweep as a recipe says it: a merge with places left open, what may stand there, and how a candidate is scored.

    merge:
      models:
        - {model: runs/apo, weight: $a}
        - {model: runs/long-context, weight: 1 - $a}
    vary: {a: [0.7, 0.8, 0.9, 1.0]}
    score: {tasks: [tasks/sums.yaml], rows: 40}

Nothing heavy is imported: recipes load from here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dualign.config import nearest
from dualign.evaluation.config import EvalConfig
from dualign.merging.config import MergeInput
from dualign.merging.sweep.points import Point, Problem, names_in, read_merge, wrong_expressions

Kind = Literal["grid", "golden", "greedy_soup", "cma"]
TRIED = 256  # points whose merges are looked through before anything starts


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Every number from `low` to `high`."""

    low: float
    """the least value"""
    high: float
    """the greatest"""
    points: int | None = None
    """for a grid: so many values, evenly apart, both ends among them"""

    def problems(self) -> list[tuple[str, str]]:
        found = []
        if not self.low < self.high:
            found.append(("high", f"expected more than low ({self.low:g}), found {self.high:g}"))
        if self.points is not None and self.points < 2:
            found.append(("points", f"expected 2 or more, found {self.points}"))
        return found

    def values(self) -> tuple[float, ...]:
        """The points of the grid, without the dust of binary fractions (0.3, not 0.30000000000000004)."""
        steps = (self.points or 2) - 1
        width = self.high - self.low
        return tuple(round(self.low + width * i / steps, 12) for i in range(steps + 1))

    def at(self, share: float) -> float:
        """The number at a share of the way from low to high, to a millionth of it."""
        return round(self.low + (self.high - self.low) * share, 9)


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepStage:
    """Many merges of the same models, each scored, and the best one written."""

    name: str
    """names the stage and its run directory"""
    kind: Literal["sweep"] = "sweep"
    """what the stage does"""
    merge: Mapping[str, Any] | tuple[Mapping[str, Any], ...]
    """as in a merge stage, or in mergekit's form; a list of the latter is a merge of merges. $NAME and 1 - $NAME stand for what varies"""
    vary: Mapping[str, Range | tuple[Any, ...]] = field(default_factory=dict)
    """for each NAME its values as a list, or {low, high}; with points, a range is a grid of that many"""
    search: Kind = "grid"
    """grid: every combination. golden: one range with one peak. cma: several ranges. greedy_soup: which models to average"""
    budget: int | None = None
    """golden and cma: so many candidates at most"""
    tolerance: float = 0.02
    """golden: stop when the peak is known to such a share of the range"""
    score: EvalConfig | None = None
    """the tasks that each candidate is evaluated on in both modes, as in an eval stage"""
    command: str | None = None
    """instead of score: a shell command that gets the candidate's folder as {model}; the last number it prints is the score"""
    files: tuple[str, ...] = ()
    """what the command reads, besides the candidate: its scores are kept as long as these don't change"""
    objective: Literal["mean", "think", "no_think", "min"] = "mean"
    """the number to raise: accuracy of one mode, the mean of both, or the lower of both"""
    best: Literal["highest", "lowest"] = "highest"
    """of a command's numbers"""

    @property
    def models(self) -> tuple[MergeInput, ...]:
        """What is merged; the first one tells others what the merged model is like."""
        merge, _ = read_merge(self.merge, self.first_point(), self.name)
        return tuple(MergeInput(model=name) for name in merge.models()) if merge else ()

    def first_point(self) -> Point:
        """Some candidate."""
        return next(iter(self.probes()), {})

    def probes(self) -> Iterator[Point]:
        """Points whose merges must be right: those of a small grid, else each value and end once."""
        values = {name: _shown(one) for name, one in self.vary.items()}
        if not all(values.values()):
            return
        middle = {name: one[len(one) // 2] for name, one in values.items()}
        yield middle
        for name, each in values.items():
            yield from ({**middle, name: one} for one in each[:TRIED])

    def in_words(self) -> str:
        """What is searched, and how it is scored, for `dualign plan`."""
        scored = (
            "the command" if self.score is None else f"{len(self.score.tasks)} task(s), both modes"
        )
        return f"{self.search} over {', '.join(self.vary) or 'the models'}; each candidate scored by {scored}"

    def problems(self) -> list[tuple[str, str]]:
        found = [*self._name_problems(), *self._search_problems(), *self._score_problems()]
        return found or self._merge_problems()

    def _name_problems(self) -> Iterator[tuple[str, str]]:
        used = names_in(self.merge)
        for key, name in used:
            if name not in self.vary:
                yield f"merge.{key}", f"${name}: vary has no such name{nearest(name, [*self.vary])}"
        for name in self.vary:
            if name not in {one for _, one in used}:
                yield f"vary.{name}", f"has no effect: merge has no ${name}"
        for key, text in wrong_expressions(self.merge, [*self.vary]):
            yield f"merge.{key}", f"{text!r}: expected $NAME or 1 - $NAME alone"

    def _search_problems(self) -> Iterator[tuple[str, str]]:
        if self.search == "greedy_soup":
            yield from self._soup_problems()
        elif not self.vary:
            yield "vary", "expected one name at least, with its values"
        for name, one in self.vary.items():
            if self.search in ("golden", "cma"):
                if not isinstance(one, Range):
                    yield f"vary.{name}", f"{self.search} needs a range: {{low: ..., high: ...}}"
                elif one.points is not None:
                    yield f"vary.{name}.points", f"has no effect with search: {self.search}"
            elif isinstance(one, Range) and one.points is None:
                yield f"vary.{name}", "a grid needs points, the number of values; or list them"
            elif isinstance(one, tuple) and not one:
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
        merge, wrong = read_merge(self.merge, {}, self.name)
        if merge is None or wrong:
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
            yield from (
                (key, "has no effect without command")
                for key, given in (("files", self.files), ("best", self.best != "highest"))
                if given
            )
        else:
            if "{model}" not in self.command:
                yield "command", "expected {model} in it, where the candidate's folder goes"
            if self.objective != "mean":
                yield "objective", "has no effect: a command's number is the score"

    def _merge_problems(self) -> list[tuple[str, str]]:
        """Each problem once, with a point that has it if there are others that don't."""
        probes = list(self.probes()) or [{}]
        seen: dict[tuple[str, str], list[Point]] = {}
        for point in probes:
            for problem in read_merge(self.merge, point, self.name)[1]:
                seen.setdefault(_flat(problem), []).append(point)
        return [
            (key, message + ("" if len(at) == len(probes) else _at(at[0])))
            for (key, message), at in seen.items()
        ]


def _shown(one: Range | tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(one, Range):
        return one.values() if one.points else (one.low, one.at(0.5), one.high)
    return one


def _flat(problem: Problem) -> tuple[str, str]:
    key, message = problem
    return ".".join(map(str, ("merge", *key))), message


def _at(point: Point) -> str:
    """` (at a = 0.9)`"""
    values = ", ".join(f"{name} = {value}" for name, value in point.items())
    return f" (at {values})" if values else ""
