"""Sections on accuracy: in both modes, and what each stage bought."""

from collections.abc import Iterator, Sequence

from dualign.data.conversation import MODES
from dualign.evaluation.scores import (
    ModelScores,
    change_text,
    gain_text,
    score_text,
    short_label,
    task_names,
)
from dualign.report.blocks import Block, Gallery, Paragraph, Section, Table
from dualign.report.conclusions import Evaluated, Step, multiplicity_note
from dualign.report.plots import accuracy_plot

_TASKS_PER_TABLE = 3  # more columns don't fit on paper


def accuracy_sections(evaluated: Evaluated) -> Iterator[Section]:
    """Yield the tables of accuracy and gain in both modes, and a plot of each task."""
    models = evaluated.scores
    tasks = task_names(models)
    note = (
        "Percent right with 95 % intervals. Gain: think less no_think in the same model, in points "
        "of percent. In brackets where its 95 % interval holds 0: such a gain is not measurable."
    )
    parts = [tasks[i : i + _TASKS_PER_TABLE] for i in range(0, len(tasks), _TASKS_PER_TABLE)]
    pictures = [
        accuracy_plot(f"accuracy-{i}", task, [model for model in models if task in model.tasks])
        for i, task in enumerate(tasks)
    ]
    blocks: list[Block] = [Paragraph(text=note, quiet=True)]
    without_switch = ", ".join(short_label(m.model) for m in models if not m.mode_switch)
    if without_switch:
        text = (
            "Without a mode switch in its chat template, so that both modes got one prompt: "
            f"{without_switch}."
        )
        blocks.append(Paragraph(text=text))
    blocks += [_accuracy_table(models, part) for part in parts]
    blocks += [Gallery(pictures=tuple(pictures)), *(_gains_table(models, part) for part in parts)]
    yield Section(name="accuracy", title="Accuracy in both modes", blocks=tuple(blocks))


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
    counts = {
        score.n
        for model in models
        for mode in MODES
        if (score := model.score(task, mode)) is not None
    }
    return " to ".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else "-"


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
    changes = step.changes()
    tasks = dict.fromkeys(task for task, _ in changes)
    rows = [
        (
            task,
            *(change_text(changes.get((task, mode))) for mode in MODES),
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
