"""Sections on accuracy: in both modes, what each stage bought, and against the first model."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from dualign.data.conversation import MODES
from dualign.evaluation.scores import (
    Change,
    ModelScores,
    Score,
    change_text,
    gain_text,
    mean_of,
    score_text,
    short_label,
    task_names,
)
from dualign.evaluation.significance import needed_note
from dualign.evaluation.table import SAMPLED_LEGEND, sampled_rows
from dualign.report.blocks import Block, Gallery, Paragraph, Section, Table
from dualign.report.conclusions import Evaluated, Step, multiplicity_note
from dualign.report.groups import TaskGroups, is_small, task_groups
from dualign.report.plots import accuracy_plot, group_plot
from dualign.report.runs import StageRun

_TASKS_PER_TABLE = 3  # more columns don't fit on paper


def accuracy_sections(evaluated: Evaluated) -> Iterator[Section]:
    """Yield the tables of accuracy and gain in both modes, and plots.

    A few tasks are columns, with a plot for each; many are rows, by group, with a plot for each group.
    """
    models = evaluated.scores
    groups = task_groups(evaluated.stages, task_names(models))
    note = (
        "Percent right with 95 % intervals. Gain: think less no_think in the same model, in points "
        "of percent. In brackets where its 95 % interval holds 0: such a gain is not measurable."
    )
    blocks: list[Block] = [Paragraph(text=note, quiet=True)]
    without_switch = ", ".join(short_label(m.model) for m in models if not m.mode_switch)
    if without_switch:
        text = (
            "Without a mode switch in its chat template, so that both modes got one prompt: "
            f"{without_switch}."
        )
        blocks.append(Paragraph(text=text))
    blocks += _few_tasks(models) if is_small(groups) else _many_tasks(models, groups)
    changes = (change for stage in evaluated.stages for change in _changes_of(stage))
    if models and (needed := needed_note(models[-1].tasks, changes)):
        blocks.append(Paragraph(text=needed, quiet=True))
    yield Section(name="accuracy", title="Accuracy in both modes", blocks=tuple(blocks))


def _changes_of(stage: StageRun) -> Sequence[Mapping[str, Any]]:
    changes: Sequence[Mapping[str, Any]] = (stage.metrics or {}).get("changes", ())
    return changes


def _few_tasks(models: Sequence[ModelScores]) -> Iterator[Block]:
    tasks = task_names(models)
    parts = [tasks[i : i + _TASKS_PER_TABLE] for i in range(0, len(tasks), _TASKS_PER_TABLE)]
    pictures = [
        accuracy_plot(f"accuracy-{i}", task, [model for model in models if task in model.tasks])
        for i, task in enumerate(tasks)
    ]
    yield from (_accuracy_table(models, part) for part in parts)
    yield Gallery(pictures=tuple(pictures))
    yield from (_gains_table(models, part) for part in parts)


def _many_tasks(models: Sequence[ModelScores], groups: TaskGroups) -> Iterator[Block]:
    for title, tasks in groups.items():
        yield _group_table(models, title, tasks)
    last = models[-1]
    pictures = [
        group_plot(f"accuracy-group-{i}", title, last, tasks)
        for i, (title, tasks) in enumerate(groups.items())
        if any(task in last.tasks for task in tasks)
    ]
    yield Gallery(pictures=tuple(pictures))


def _group_table(models: Sequence[ModelScores], title: str, tasks: Sequence[str]) -> Table:
    """Return a table with rows for the modes and the gain of each task, and for their means."""
    rows = []
    for task in tasks:
        name = f"{task} (n = {_count(models, task)})"
        for mode in MODES:
            rows.append((name, mode, *(score_text(model.score(task, mode)) for model in models)))
            name = ""
        rows.append((name, "gain", *(change_text(model.gain(task), 0) for model in models)))
    if len(tasks) > 1:
        name = f"mean of {len(tasks)}"
        for mode in MODES:
            means = (_mean_text([model.score(task, mode) for task in tasks]) for model in models)
            rows.append((name, mode, *means))
            name = ""
        gains = (_mean_change([model.gain(task) for task in tasks]) for model in models)
        rows.append((name, "gain", *(change_text(gain, 0) for gain in gains)))
    columns = ("task", "mode", *(short_label(model.model) for model in models))
    return Table(columns=columns, rows=tuple(rows), text_columns=2, caption=title)


def _mean_text(scores: Sequence[Score | None]) -> str:
    """Return the mean over tasks with its interval; "-" if one is missing."""
    changes = [
        Change.of(score.accuracy, (score.low, score.high)) for score in scores if score is not None
    ]
    if len(changes) < len(scores):
        return score_text(None)
    mean = mean_of(changes)
    low, high = max(0.0, mean.low), min(1.0, mean.high)
    return score_text(Score(accuracy=mean.value, low=low, high=high, n=0))


def _mean_change(changes: Sequence[Change | None]) -> Change | None:
    """Return the mean over tasks; None if one is missing."""
    known = [change for change in changes if change is not None]
    return mean_of(known) if len(known) == len(changes) else None


def _gains_table(models: Sequence[ModelScores], tasks: Sequence[str]) -> Table:
    return Table(
        columns=("model", *tasks),
        rows=tuple(
            (short_label(model.model), *(change_text(model.gain(task)) for task in tasks))
            for model in models
        ),
        caption="Gain: think less no_think, with its 95 % interval",
    )


def _accuracy_table(models: Sequence[ModelScores], tasks: Sequence[str]) -> Table:
    rows = []
    for model in models:
        row = [short_label(model.model)]
        for task in tasks:
            row += [score_text(model.score(task, mode)) for mode in MODES] + [
                gain_text(model.gain(task))
            ]
        rows.append(tuple(row))
    counts = {task: _count(models, task) for task in tasks}
    return Table(
        columns=("model", *("think", "no_think", "gain") * len(tasks)),
        rows=tuple(rows),
        groups=(("", 1), *((f"{task} (n = {counts[task]})", 3) for task in tasks)),
    )


def _count(models: Sequence[ModelScores], task: str) -> str:
    """Return the number of problems, `30 x 8` with eight answers to each; `20 to 30` if it varies."""
    scores = [
        score
        for model in models
        for mode in MODES
        if (score := model.score(task, mode)) is not None
    ]
    if not scores:
        return "-"
    numbers = sorted({score.n for score in scores})
    if len(numbers) == 1:
        return max(scores, key=lambda score: score.samples).count
    return f"{numbers[0]} to {numbers[-1]}"


def sampled_sections(evaluated: Evaluated) -> Iterator[Section]:
    """Yield pass@k and the majority, where problems had several answers."""
    columns, *rows = sampled_rows(evaluated.scores)
    if rows:
        table = Table(columns=tuple(columns), rows=tuple(map(tuple, rows)), text_columns=3)
        blocks = (Paragraph(text=SAMPLED_LEGEND, quiet=True), table)
        yield Section(name="several", title="Several answers to a problem", blocks=blocks)


def step_sections(evaluated: Evaluated) -> Iterator[Section]:
    """Yield the change of each model from its parent."""
    compared = evaluated.steps
    if not compared:
        return
    note = Paragraph(
        text=multiplicity_note(sum(len(step.changes()) for step in compared)), quiet=True
    )
    tables = tuple(_step_table(step) for step in compared)
    yield Section(name="steps", title="What each stage bought", blocks=(note, *tables))


def _step_table(step: Step) -> Table:
    changes, clear = step.changes(), step.clear()
    tasks = dict.fromkeys(task for task, _ in changes)
    rows = [
        (
            task,
            *(_marked(changes, task, mode, clear) for mode in MODES),
            change_text(step.thinking(task)),
        )
        for task in tasks
    ]
    if len(rows) > 1:
        means = (change_text(step.accuracy(mode)) for mode in MODES)
        rows.append(("all", *means, change_text(step.thinking(*tasks))))
    return Table(
        columns=("task", *MODES, "thinking tokens, %"), rows=tuple(rows), caption=step.title
    )


def _marked(
    changes: Mapping[tuple[str, str], Change], task: str, mode: str, clear: Collection[object]
) -> str:
    text = change_text(changes.get((task, mode)))
    return f"{text} *" if (task, mode) in clear else text


def base_sections(evaluated: Evaluated) -> Iterator[Section]:
    """Yield the change of each model from the first, where that isn't what the steps say already."""
    base, *others = evaluated.models
    if all(step.before is base for step in evaluated.steps):
        return
    compared = [Step(after=model, before=base) for model in others]
    changes = [step.changes() for step in compared]
    known = {task for of_step in changes for task, _ in of_step}
    groups = task_groups(evaluated.stages, [t for t in task_names(evaluated.scores) if t in known])
    tables = tuple(_base_table(compared, changes, *group) for group in groups.items())
    if not tables:
        return
    text = (
        f"In points of percent against {short_label(base.scores.model)}, with 95 % intervals as above; in "
        "brackets where such an interval holds 0."
    )
    note = Paragraph(text=text, quiet=True)
    yield Section(name="base", title="Against the first model", blocks=(note, *tables))


def _base_table(
    compared: Sequence[Step],
    changes: Sequence[Mapping[tuple[str, str], Change]],
    title: str,
    tasks: Sequence[str],
) -> Table:
    rows = [
        (task, mode, *(change_text(of_step.get((task, mode)), 0) for of_step in changes))
        for task in tasks
        for mode in MODES
    ]
    if len(tasks) > 1:
        for mode in MODES:
            means = (
                _mean_change([of_step.get((task, mode)) for task in tasks]) for of_step in changes
            )
            cells = (change_text(mean, 0) for mean in means)
            rows.append((f"mean of {len(tasks)}", mode, *cells))
    columns = ("task", "mode", *(short_label(step.after.scores.model) for step in compared))
    return Table(columns=columns, rows=tuple(rows), text_columns=2, caption=title)
