"""Two evaluated models, problem by problem: what turned right, what turned wrong, and by how much.

Problems are the same if task, id, prompt and expected answer are; others are named, and left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.data.conversation import MODES
from dualign.errors import EvaluationError
from dualign.evaluation.metrics import compare as compare_samples
from dualign.evaluation.sampled import by_budget, has_value, mean_share, problem_means
from dualign.evaluation.scores import Change, Score, change_text, mean_of, score_text
from dualign.evaluation.significance import holm
from dualign.notebook import html_table
from dualign.report.runs import Row
from dualign.report.samples import mode_label, plain
from dualign.report.sides import Side, read_side

TURNED_WRONG, TURNED_RIGHT = "turned wrong", "turned right"
WRONG_IN_BOTH, RIGHT_IN_BOTH = "wrong in both", "right in both"
OUTCOMES = (TURNED_WRONG, TURNED_RIGHT, WRONG_IN_BOTH, RIGHT_IN_BOTH)
_UNCOMPARED = frozenset({"name", "kind", "models", "tasks", "pairs", "batch_tokens"})
_SHOWN_IDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedProblem:
    """A problem in a mode, with the answers of both models: one each, or as many as were sampled."""

    task: str
    mode: str
    id: str
    before: tuple[Row, ...]
    after: tuple[Row, ...]

    @property
    def outcome(self) -> str:
        """One of `OUTCOMES`; of several answers, half or more have to be right."""
        match _is_right(self.before), _is_right(self.after):
            case True, False:
                return TURNED_WRONG
            case False, True:
                return TURNED_RIGHT
            case True, True:
                return RIGHT_IN_BOTH
            case _:
                return WRONG_IN_BOTH


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedTask:
    """A task in a mode, over the problems that both models answered."""

    task: str
    mode: str
    problems: tuple[ComparedProblem, ...]
    before: Score
    after: Score
    change: Change
    """of the accuracy, with its paired 95 % interval"""
    p: float
    """of the exact paired test"""
    p_adjusted: float
    """for the number of tasks and modes that are compared (Holm 1979)"""
    think_tokens: Change | None
    """the relative change; None where the first model hardly thinks"""
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    asked_otherwise: tuple[str, ...]
    """problems of one id, but with another prompt or expected answer"""

    def count(self, outcome: str) -> int:
        """Return how many problems have an outcome."""
        return sum(problem.outcome == outcome for problem in self.problems)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Model `after` against model `before` on the tasks that they share."""

    before: Side
    after: Side
    tasks: tuple[ComparedTask, ...]
    only_before: tuple[str, ...]
    """tasks that only the first model was asked"""
    only_after: tuple[str, ...]
    without_share: tuple[str, ...]
    """tasks whose answers aren't right or wrong, such as perplexities"""
    settings: Mapping[str, tuple[Any, Any]]
    """settings of the evaluations that differ"""

    @property
    def names(self) -> tuple[str, str]:
        """Names that tell the two apart."""
        before, after = self.before.name, self.after.name
        if before != after:
            return before, after
        folders = [side.folder.absolute() for side in (self.before, self.after)]
        short = [f"{folder.name}:{before}" for folder in folders]
        long = [f"{folder}:{before}" for folder in folders]
        first, second = short if short[0] != short[1] else long
        return first, second

    @property
    def problems(self) -> list[ComparedProblem]:
        """All compared problems: turned wrong, turned right, then those that stayed."""
        problems = [problem for task in self.tasks for problem in task.problems]
        return sorted(problems, key=lambda problem: OUTCOMES.index(problem.outcome))

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows: a row for each task and mode."""
        before, after = self.names
        columns = ("task", "mode", "problems", before, after, "change [95 %]", "p, adjusted")
        rows = []
        for task in self.tasks:
            figures = (score_text(task.before), score_text(task.after), change_text(task.change))
            names = (task.task, task.mode, len(task.problems))
            rows.append((*names, *figures, f"{task.p_adjusted:.3f}"))
        return html_table(columns, rows, caption="accuracy in percent", text_columns=2)

    @property
    def means(self) -> dict[str, Change]:
        """The change in each mode, the mean of the tasks."""
        modes = dict.fromkeys(task.mode for task in self.tasks)
        return {
            mode: mean_of([task.change for task in self.tasks if task.mode == mode])
            for mode in modes
        }

    def notes(self) -> Iterator[str]:
        """Yield what isn't compared, and what isn't alike."""
        before, after = self.names
        for name, tasks in ((before, self.only_before), (after, self.only_after)):
            if tasks:
                yield f"Only {name} was asked {', '.join(tasks)}: not compared."
        if self.without_share:
            yield f"Without a metric from 0 to 1: {', '.join(self.without_share)}: not compared."
        for task in self.tasks:
            for what, ids in (
                (f"only of {before}", task.only_before),
                (f"only of {after}", task.only_after),
                ("with another prompt or expected answer", task.asked_otherwise),
            ):
                if ids:
                    yield (
                        f"{task.task}, {task.mode}: problems that aren't compared, {what}: {len(ids)} "
                        f"({_listed(ids)})."
                    )
        for key, (first, second) in self.settings.items():
            yield f"Evaluated with another {key}: {plain(first) or '-'} and {plain(second) or '-'}."


def compare(before: str | Path, after: str | Path) -> Comparison:
    """Compare two evaluated models, each named as `read_side` takes it.

    Raises:
        CheckpointError: a folder isn't there or isn't an evaluation.
        EvaluationError: both are the same, or they share no problem.
    """
    first, second = read_side(before), read_side(after)
    same_folder = first.folder.resolve() == second.folder.resolve()
    if same_folder and first.model.scores.model == second.model.scores.model:
        raise EvaluationError(
            f"{before} and {after} are the same model, {first.name}, of one evaluation; name another "
            "as RUN:MODEL"
        )
    grouped = [_grouped(side) for side in (first, second)]
    tasks = [list(dict.fromkeys(task for task, _ in groups)) for groups in grouped]
    cut = {
        (str(row.get("task")), mode_label(row))
        for side in (first, second)
        for row in (*side.model.samples, *side.model.budgeted)
    }
    shared = [key for key in grouped[1] if key in grouped[0] and key in cut]
    paired = [_paired(key, grouped[0][key], grouped[1][key]) for key in shared]
    compared = [task for task in paired if task["problems"]]
    if not compared:
        raise EvaluationError(f"{before} and {after}: {_nothing_shared(tasks, paired)}")
    adjusted = _adjusted(compared)
    return Comparison(
        before=first,
        after=second,
        tasks=tuple(
            ComparedTask(**task, p_adjusted=p) for task, p in zip(compared, adjusted, strict=True)
        ),
        only_before=tuple(task for task in tasks[0] if task not in tasks[1]),
        only_after=tuple(task for task in tasks[1] if task not in tasks[0]),
        without_share=_without_share(first, second),
        settings=_different_settings(first, second),
    )


def _without_share(*sides: Side) -> tuple[str, ...]:
    rows = (row for side in sides for row in side.model.samples if not has_value(row))
    return tuple(dict.fromkeys(str(row.get("task")) for row in rows))


def _adjusted(compared: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the adjusted p of each task; rows of budgets are corrected by themselves."""
    adjusted = [0.0] * len(compared)
    for whole in (True, False):
        places = [i for i, task in enumerate(compared) if (task["mode"] in MODES) is whole]
        for place, p in zip(places, holm([compared[i]["p"] for i in places]), strict=True):
            adjusted[place] = p
    return adjusted


_Groups = dict[tuple[str, str], dict[str, list[Row]]]


def _grouped(side: Side) -> _Groups:
    """Return the answers by (task, mode) and problem; modes with budgets come last.

    Where a budget cut nothing, the whole answer counts there, as it does in the metrics.
    """
    whole = list(filter(has_value, by_budget(side.model.samples)[None]))
    at_budget = {(row["budget"], *_place(row)): row for row in side.model.budgeted}
    rows = [*whole]
    for budget, task, mode in dict.fromkeys([*(place[:3] for place in at_budget), *_asked(side)]):
        rows += [
            {**at_budget.get((budget, *_place(row)), row), "budget": budget}
            for row in whole
            if (row.get("task"), row.get("mode")) == (task, mode)
        ]
    groups: _Groups = {}
    for row in rows:
        of_task = groups.setdefault((str(row.get("task")), mode_label(row)), {})
        of_task.setdefault(str(row.get("id")), []).append(row)
    places = {task: place for place, task in enumerate(dict.fromkeys(task for task, _ in groups))}
    modes: dict[str, int] = {mode: place for place, mode in enumerate(MODES)}
    order = sorted(groups, key=lambda key: (places[key[0]], modes.get(key[1], len(modes))))
    return {key: groups[key] for key in order}


def _asked(side: Side) -> Iterator[tuple[int, str, str]]:
    """Yield (budget, task, mode) of what was asked; a budget that cut no trace has no lines."""
    for task, modes in side.model.scores.tasks.items():
        for mode, cell in modes.items():
            for entry in cell.get("budgets") or ():
                if entry["budget"] is not None:
                    yield entry["budget"], task, mode


def _place(row: Row) -> tuple[Any, ...]:
    return row.get("task"), row.get("mode"), row.get("id"), row.get("sample") or 0


def _paired(
    key: tuple[str, str], before: Mapping[str, list[Row]], after: Mapping[str, list[Row]]
) -> dict[str, Any]:
    """Return the fields of a compared task; without problems if none is shared."""
    task, mode = key
    common = [number for number in before if number in after]
    same = [number for number in common if _question(before[number]) == _question(after[number])]
    fields: dict[str, Any] = {
        "task": task,
        "mode": mode,
        "problems": tuple(
            ComparedProblem(
                task=task, mode=mode, id=id, before=tuple(before[id]), after=tuple(after[id])
            )
            for id in same
        ),
        "only_before": tuple(number for number in before if number not in after),
        "only_after": tuple(number for number in after if number not in before),
        "asked_otherwise": tuple(number for number in common if number not in same),
    }
    if not same:
        return fields
    earlier, later = (
        [_figures(row) for id in same for row in side[id]] for side in (before, after)
    )
    change = compare_samples(earlier, later)
    lengths = change["think_tokens"]
    return fields | {
        "before": _score(earlier),
        "after": _score(later),
        "change": Change.of(change["value"], change["ci"]),
        "p": change["p"],
        "think_tokens": lengths and Change.of(lengths["value"], lengths["ci"]),
    }


def _question(rows: Sequence[Row]) -> tuple[str, str]:
    return plain(rows[0].get("prompt")), plain(rows[0].get("expected"))


def _figures(row: Row) -> dict[str, Any]:
    """Return an answer with what figures need; early evaluations counted no tokens."""
    return {"correct": False, **row, "think_tokens": row.get("think_tokens") or 0}


def _score(rows: Sequence[Row]) -> Score:
    accuracy, (low, high) = mean_share(rows)
    return Score(accuracy=accuracy, low=low, high=high, n=len(problem_means(rows)))


def _is_right(rows: Sequence[Row]) -> bool:
    return 2 * sum(bool(row.get("correct")) for row in rows) >= len(rows)


def _different_settings(before: Side, after: Side) -> dict[str, tuple[Any, Any]]:
    """Return the settings of evaluation stages that answers depend on, where they differ."""
    configs = [
        {key: value for stage in side.stages for key, value in _config(stage.record).items()}
        for side in (before, after)
    ]
    if not all(configs):  # `dualign eval` keeps no record of its settings
        return {}
    first, second = configs
    return {
        key: (first.get(key), second.get(key))
        for key in {**first, **second}
        if key not in _UNCOMPARED and first.get(key) != second.get(key)
    }


def _config(record: Row) -> Mapping[str, Any]:
    return record.get("config") or {}


def _nothing_shared(tasks: Sequence[Sequence[str]], paired: Sequence[Mapping[str, Any]]) -> str:
    if not paired:
        first, second = (", ".join(names) or "none" for names in tasks)
        return f"they share no task: the first was asked {first}; the second {second}"
    task = paired[0]
    if task["asked_otherwise"]:
        return (
            f"task {task['task']} has the same ids in both, such as "
            f"{_listed(task['asked_otherwise'])}, but other prompts or expected answers"
        )
    return (
        f"they share task {task['task']}, but none of its problems: the first was asked "
        f"{_listed(task['only_before'])}; the second {_listed(task['only_after'])}"
    )


def _listed(ids: Sequence[str]) -> str:
    rest = f" and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
    return ", ".join(ids[:_SHOWN_IDS]) + rest
