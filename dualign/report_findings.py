"""What the numbers allow to say: what thinking adds, what each stage bought, whether the switch works."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dualign.conversation import MODES
from dualign.report_runs import StageRun, is_preference, is_training, series
from dualign.scores import (
    Change,
    ModelScores,
    change,
    change_text,
    percent,
    short_label,
    task_names,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A model and the one it came from (or, where that wasn't evaluated, the one above it in the table)."""

    after: ModelScores
    before: ModelScores

    def changes(self) -> dict[tuple[str, str], Change]:
        """By task and mode, where both models were asked."""
        tasks = task_names((self.after,))
        found = {
            (task, mode): change(self.after.score(task, mode), self.before.score(task, mode))
            for task in tasks
            for mode in MODES
        }
        return {key: difference for key, difference in found.items() if difference is not None}


def steps(models: Sequence[ModelScores], stages: Sequence[StageRun]) -> tuple[Step, ...]:
    """What is compared with what: each model but the first with its nearest evaluated parent above it."""
    return tuple(
        Step(after=model, before=_before(model, models[:index], stages))
        for index, model in enumerate(models)
        if index > 0
    )


def _before(
    model: ModelScores, above: Sequence[ModelScores], stages: Sequence[StageRun]
) -> ModelScores:
    name = short_label(model.model)
    parents = {
        str(ref).removeprefix("stage:").split("/")[0]
        for stage in stages
        if stage.name == name
        for ref in stage.record.get("parents") or {}
    }
    related = [other for other in above if short_label(other.model) in parents]
    return (related or list(above))[-1]


def thinking_finding(model: ModelScores) -> str | None:
    """What thinking adds to one model, over all its tasks; None where it wasn't asked in both modes."""
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
    """What one stage bought in accuracy. A change within its 95 % interval is not a change."""
    changes = {f"{task} {mode}": found for (task, mode), found in step.changes().items()}
    head = f"{short_label(step.after.model)} against {short_label(step.before.model)}"
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


def _none_measurable(changes: dict[str, Change]) -> str:
    name, largest = max(changes.items(), key=lambda item: abs(item[1].value))
    if len(changes) == 1:
        return f"The one change lies within its 95 % interval: {name} {change_text(largest)}."
    return (
        f"All {len(changes)} changes lie within their 95 % intervals; "
        f"the largest: {name} {change_text(largest)}."
    )


def _part(words: str, changes: Sequence[tuple[str, Change]]) -> str:
    if not changes:
        return ""
    return f"{words} {', '.join(f'{name} {change_text(found)}' for name, found in changes)}"


def multiplicity_note(count: int) -> str:
    """How many of the comparisons would stand out by chance."""
    return (
        "In points of percent, with 95 % intervals of the difference (Newcombe). The two sides are taken as independent, "
        "which makes the intervals rather too wide where both answered the same problems. No correction is made "
        f"for the number of comparisons: of {count}, about {count * 0.05:.1f} would stand out by chance alone."
    )


def training_findings(stage: StageRun) -> Iterator[str]:
    """What the log of a training stage shows: its loss, and for preference the held-out margins."""
    if not is_training(stage):
        return
    evaluation = series(stage.log, "eval_loss")
    key, words = ("eval_loss", "validation loss") if evaluation else ("loss", "training loss")
    yield f"{stage.name}: {words} {_course(stage, key)}."
    if is_preference(stage):
        yield from _margin_finding(stage)


def _course(stage: StageRun, key: str) -> str:
    """`1.20 to 0.61 (think 1.31 to 0.55, no_think 1.12 to 0.66)`, first and last logged value."""
    parts = [
        f"{mode} {ends}" for mode in MODES if (ends := ends_text(stage, f"{key}/{mode}")) != "-"
    ]
    by_mode = f" ({', '.join(parts)})" if parts else ""
    return f"{ends_text(stage, key)}{by_mode}, first to last logged"


def ends_text(stage: StageRun, key: str) -> str:
    """The first and last logged value of a key; '-' where it wasn't logged."""
    points = series(stage.log, key)
    if not points:
        return "-"
    return f"{points[0][1]:.3f} to {points[-1][1]:.3f}"


def _margin_finding(stage: StageRun) -> Iterator[str]:
    for prefix, where in (("eval_", "held-out"), ("", "training")):
        parts = []
        for mode in MODES:
            margins = series(stage.log, f"{prefix}rewards/margins/{mode}")
            right = series(stage.log, f"{prefix}rewards/accuracies/{mode}")
            if margins and right:
                parts.append(
                    f"{mode} {margins[-1][1]:+.3f} ({percent(right[-1][1])} % of pairs right)"
                )
        if parts:
            yield (
                f"{stage.name}: reward margin on {where} pairs at the end: {', '.join(parts)}. "
                "The margin is measured against the reference, where it is 0."
            )
            return


def format_finding(model: ModelScores) -> str | None:
    """The worst task of each of the two numbers that tell whether the switch works."""
    leaks = _rates(model, "no_think", "leak_rate")
    closed = _rates(model, "think", "closed_rate")
    parts = []
    if leaks:
        parts.append(f"highest leak rate in no_think {percent(max(leaks)[0])} % ({max(leaks)[1]})")
    if closed:
        parts.append(
            f"lowest share of closed think blocks {percent(min(closed)[0])} % ({min(closed)[1]})"
        )
    return f"The switch in {short_label(model.model)}: {', '.join(parts)}." if parts else None


def _rates(model: ModelScores, mode: str, key: str) -> list[tuple[float, str]]:
    cells = {task: modes.get(mode, {}).get(key) for task, modes in model.tasks.items()}
    return [(rate, task) for task, rate in cells.items() if rate is not None]
