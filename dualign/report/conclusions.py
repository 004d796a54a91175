"""Conclusions in sentences: on thinking, on the gain of each stage, on the mode switch.

A change whose 95 % interval holds zero is never called a gain or a loss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dualign.data.conversation import MODES
from dualign.evaluation.sampled import by_budget, problem_means
from dualign.evaluation.scores import (
    Change,
    ModelScores,
    change_text,
    mean_of,
    paired_change,
    percent,
    ratio_change,
    short_label,
    task_names,
)
from dualign.evaluation.scores import (
    change as unpaired_change,
)
from dualign.evaluation.significance import LEVEL, holm, sign_flip_p
from dualign.evaluation.table import rise_text
from dualign.recipe import stage_of
from dualign.report.runs import (
    ModelEvaluation,
    Row,
    StageRun,
    is_preference,
    is_rated,
    is_training,
    series,
)

_NAMED_CHANGES = 6  # of one kind in a sentence; the tables have all


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A model and its parent; if that wasn't evaluated, the model above it in the table."""

    after: ModelEvaluation
    before: ModelEvaluation

    @property
    def title(self) -> str:
        return f"{short_label(self.after.scores.model)} against {short_label(self.before.scores.model)}"

    def changes(self) -> dict[tuple[str, str], Change]:
        """Return the changes by (task, mode), if both models were asked."""
        return {
            (task, mode): change
            for task in task_names((self.after.scores,))
            for mode in MODES
            if (change := self._change(task, mode)) is not None
        }

    def clear(self) -> set[tuple[str, str]]:
        """Return the (task, mode) whose exact paired p stays below 0.05 after Holm's correction."""
        pairs = {key: pair for key in self.changes() if (pair := self._pair(*key))}
        values = [
            sign_flip_p([late - early for early, late in zip(*pair, strict=True)])
            for pair in pairs.values()
        ]
        return {key for key, p in zip(pairs, holm(values), strict=True) if p < LEVEL}

    def accuracy(self, mode: str) -> Change | None:
        """Return the change in a mode, the mean of the tasks."""
        parts = [change for (_, of), change in self.changes().items() if of == mode]
        return mean_of(parts) if parts else None

    def thinking(self, *tasks: str) -> Change | None:
        """Return the relative change of the thinking tokens in think mode, on the same problems of the
        tasks; None if a task's problems differ, or if the model before hardly thinks.
        """
        before: list[float] = []
        after: list[float] = []
        for task in tasks:
            earlier, later = (think_tokens(model, task) for model in (self.before, self.after))
            if earlier.keys() != later.keys():
                return None
            before += earlier.values()
            after += (later[key] for key in earlier)
        return ratio_change(before, after)

    def _change(self, task: str, mode: str) -> Change | None:
        """Compare problem by problem if both models answered the same ones, else as two samples."""
        if pair := self._pair(task, mode):
            return paired_change(*pair)
        return unpaired_change(
            self.after.scores.score(task, mode), self.before.scores.score(task, mode)
        )

    def _pair(self, task: str, mode: str) -> tuple[list[float], list[float]] | None:
        """Return what the same problems are worth before and after; None if they differ."""
        before, after = (_right(model, task, mode) for model in (self.before, self.after))
        if not before or before.keys() != after.keys():
            return None
        return list(before.values()), [after[key] for key in before]


def _right(model: ModelEvaluation, task: str, mode: str) -> dict[str, float]:
    """Return {problem id: what its answers are worth}; empty if samples are missing."""
    values = problem_means(_answers(model, task, mode))
    score = model.scores.score(task, mode)
    return values if score is not None and len(values) == score.n else {}


def think_tokens(model: ModelEvaluation, task: str) -> dict[str, float]:
    """Return {problem id: thinking tokens, the mean of its answers} in think mode; empty without
    samples.
    """
    answers = [row for row in _answers(model, task, "think") if row.get("think_tokens") is not None]
    return problem_means(answers, lambda row: int(row["think_tokens"]))


def _answers(model: ModelEvaluation, task: str, mode: str) -> list[Row]:
    """Return the answers whose thinking no budget ended."""
    return [
        row
        for row in by_budget(model.samples)[None]
        if (row.get("task"), row.get("mode")) == (task, mode)
    ]


def steps(models: Sequence[ModelEvaluation], stages: Sequence[StageRun]) -> tuple[Step, ...]:
    """Compare each model but the first with its nearest evaluated parent."""
    return tuple(
        Step(after=model, before=_before(model, models[:index], stages))
        for index, model in enumerate(models)
        if index > 0
    )


def _before(
    model: ModelEvaluation, above: Sequence[ModelEvaluation], stages: Sequence[StageRun]
) -> ModelEvaluation:
    name = short_label(model.scores.model)
    parents = {
        stage_of(parent) or parent
        for stage in stages
        if stage.name == name
        for parent in stage.record.get("parents") or {}
    }
    related = [other for other in above if short_label(other.scores.model) in parents]
    return (related or list(above))[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """What the sections on an evaluation are made from.

    `steps`: each model but the first against its nearest evaluated parent.
    """

    stages: Sequence[StageRun]
    models: Sequence[ModelEvaluation]
    steps: Sequence[Step]

    @property
    def scores(self) -> list[ModelScores]:
        """The figures of the models, without their answers."""
        return [model.scores for model in self.models]


def thinking_finding(model: ModelScores) -> str | None:
    """State the gain of thinking for a model on its tasks; None without scores in both modes."""
    gains = {task: gain for task in task_names((model,)) if (gain := model.gain(task)) is not None}
    if not gains:
        return None
    parts = [
        _part("thinking adds points on", [(t, g) for t, g in gains.items() if g.low > 0]),
        _part("thinking costs points on", [(t, g) for t, g in gains.items() if g.high < 0]),
        _part(
            "no measurable difference on", [(t, g) for t, g in gains.items() if not g.measurable]
        ),
    ]
    return f"{short_label(model.model)}: {'; '.join(part for part in parts if part)}."


def step_finding(step: Step) -> str:
    """State the gain of a stage in accuracy."""
    changes = {f"{task} {mode}": change for (task, mode), change in step.changes().items()}
    head = step.title
    if not changes:
        return f"{head}: no task was put to both, so nothing can be said."
    gains = [(name, c) for name, c in changes.items() if c.low > 0]
    losses = [(name, c) for name, c in changes.items() if c.high < 0]
    if not gains and not losses:
        return f"{head}: bought nothing measurable in accuracy. {_none_measurable(changes)}"
    rest = len(changes) - len(gains) - len(losses)
    parts = [
        _part("gained points on", gains),
        _part("lost points on", losses),
        f"no measurable change in the other {rest} of {len(changes)}" if rest else "",
    ]
    if not gains:
        parts.insert(0, "bought nothing measurable in accuracy")
    return f"{head}: {'; '.join(part for part in parts if part)}."


def length_finding(step: Step) -> str | None:
    """State the change of the thinking tokens, and of the accuracy with them; None if none is measurable."""
    tasks = tuple(task for task, mode in step.changes() if mode == "think")
    change = step.thinking(*tasks)
    if change is None or not change.measurable:
        return None
    cut = change.value < 0
    ends = sorted(abs(limit) for limit in (change.low, change.high))
    shares = [percent(limit) for limit in (abs(change.value), *ends)]
    return (
        f"{step.title}: {'cut' if cut else 'raised'} thinking tokens by {shares[0]} % (95 % interval "
        f"{shares[1]} to {shares[2]}), with {_with_accuracy(step.accuracy('think'), len(tasks))}."
    )


def _with_accuracy(change: Change | None, tasks: int) -> str:
    assert change is not None, "thinking is compared on tasks that both models answered"
    over = f", the mean of {tasks} tasks" if tasks > 1 else ""
    if not change.measurable:
        return f"no measurable change of accuracy in think {change_text(change)}{over}"
    words = "a gain" if change.value > 0 else "a loss"
    return f"{words} of accuracy in think: {change_text(change)} points{over}"


def _none_measurable(changes: dict[str, Change]) -> str:
    name, largest = max(changes.items(), key=lambda item: abs(item[1].value))
    if len(changes) == 1:
        return f"The one change lies within its 95 % interval: {name} {change_text(largest)}."
    subject = "Both" if len(changes) == 2 else f"All {len(changes)}"
    return (
        f"{subject} changes lie within their 95 % intervals; "
        f"the largest: {name} {change_text(largest)}."
    )


def _part(words: str, changes: Sequence[tuple[str, Change]]) -> str:
    """Return the words with the changes; of many, with the largest, and how many more there are."""
    if not changes:
        return ""
    shown = changes
    if len(changes) > _NAMED_CHANGES:
        shown = sorted(changes, key=lambda item: -abs(item[1].value))[:_NAMED_CHANGES]
    rest = f" and {len(changes) - len(shown)} more" if len(changes) > len(shown) else ""
    return f"{words} {', '.join(f'{name} {change_text(change)}' for name, change in shown)}{rest}"


def multiplicity_note(count: int) -> str:
    """Explain the intervals of the changes, and what is left after a correction for their number."""
    return (
        "In points of percent, with the 95 % interval of the change; in brackets where it holds 0: "
        "such a change is not measurable. Intervals are of pairs where both models answered the same "
        "problems (Agresti and Min; Student's t where a problem has several answers or a grade), else "
        "of two samples (Newcombe). all: the mean of the tasks. Thinking tokens: the relative change "
        f"of their mean in think mode. Of {count} comparisons about {count * 0.05:.1f} would stand out "
        "by chance alone; * marks those of a model whose exact paired p stays below 0.05 after Holm's "
        "correction over its tasks and modes."
    )


def training_findings(stage: StageRun) -> Iterator[str]:
    """Yield the loss of a training stage, and for preference stages the margins at the end."""
    if not is_training(stage):
        return
    evaluation = series(stage.log, "eval_loss")
    key, words = ("eval_loss", "validation loss") if evaluation else ("loss", "training loss")
    yield f"{stage.name}: {words} {_course(stage, key)}."
    if is_preference(stage):
        yield from _margin_finding(stage)


def _course(stage: StageRun, key: str) -> str:
    """Return `1.20 to 0.61 (think 1.31 to 0.55, no_think 1.12 to 0.66), first to last logged`."""
    parts = [
        f"{mode} {ends}" for mode in MODES if (ends := ends_text(stage, f"{key}/{mode}")) != "-"
    ]
    by_mode = f" ({', '.join(parts)})" if parts else ""
    note = ", first to last logged" if len(series(stage.log, key)) > 1 else ""
    return f"{ends_text(stage, key)}{by_mode}{note}"


def ends_text(stage: StageRun, key: str) -> str:
    """Return the first and last logged value of a key; "-" if it wasn't logged."""
    values = [value for _, value in series(stage.log, key)]
    return " to ".join(f"{value:.3f}" for value in (values[:1] + values[1:][-1:])) or "-"


def _margin_finding(stage: StageRun) -> Iterator[str]:
    rows = "answers, good over bad," if is_rated(stage) else "pairs"
    for prefix, where in (("eval_", "held-out"), ("", "training")):
        parts = []
        for mode in MODES:
            margins = series(stage.log, f"{prefix}rewards/margins/{mode}")
            right = series(stage.log, f"{prefix}rewards/accuracies/{mode}")
            if margins and right:
                share = f"{percent(right[-1][1])} % of {rows.partition(',')[0]} right"
                parts.append(f"{mode} {margins[-1][1]:+.3f} ({share})")
        if parts:
            yield (
                f"{stage.name}: reward margin on {where} {rows} at the end: {', '.join(parts)}. "
                + _measure(stage)
            )
            return


def _measure(stage: StageRun) -> str:
    """Say what a margin is a difference of; a stage whose loss has no reference records that."""
    if (stage.record.get("metrics") or {}).get("reference", "a reference") is None:
        return "The loss has no reference: the margin is of the policy's own log-probabilities."
    return "The margin is measured against the reference, where it is 0."


def margin_findings(metrics: Row) -> Iterator[str]:
    """Yield the gain of each model on the one before in the margins of preference pairs."""
    rises: dict[tuple[str, str, str], list[str]] = {}
    for entry in metrics.get("pair_changes", ()):
        key = short_label(entry["model"]), short_label(entry["against"]), entry["pairs"]
        rises.setdefault(key, []).append(f"{entry['mode']} {rise_text(entry)}")
    for (model, against, name), parts in rises.items():
        yield (
            f"{model} against {against}: margin of chosen over rejected on {name}: "
            f"{', '.join(parts)} nats; in brackets where not measurable."
        )


def format_finding(model: ModelScores) -> str | None:
    """State the worst leak rate and the worst share of closed think blocks, with their tasks."""
    leaks = _rates(model, "no_think", "leak_rate")
    closed = _rates(model, "think", "closed_rate")
    parts = []
    if leaks:
        worst, task = max(leaks)
        where = f" ({task})" if worst > 0 else " on every task"
        parts.append(f"highest leak rate in no_think {percent(worst)} %{where}")
    if closed:
        worst, task = min(closed)
        where = f" ({task})" if worst < 1 else " on every task"
        parts.append(f"lowest share of closed think blocks {percent(worst)} %{where}")
    return f"The switch in {short_label(model.model)}: {', '.join(parts)}." if parts else None


def _rates(model: ModelScores, mode: str, key: str) -> list[tuple[float, str]]:
    cells = {task: modes.get(mode, {}).get(key) for task, modes in model.tasks.items()}
    return [(rate, task) for task, rate in cells.items() if rate is not None]
