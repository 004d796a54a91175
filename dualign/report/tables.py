"""The think / no_think table for the terminal, with the numbers of the report's first table."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from dualign.evaluation.scores import (
    Change,
    ModelScores,
    gain_text,
    score_text,
    short_label,
    task_names,
)


def summary_table(models: Sequence[ModelScores], *, title: str = "Accuracy, %") -> Table:
    """Return a table with a row for each task and model: accuracy in both modes, and the gain.

    Accuracies have 95 % intervals. The gain is the accuracy that thinking adds, in points; it is in
    brackets if its interval holds zero.
    """
    table = Table(title=title, title_justify="left")
    for column in ("task", "model"):
        table.add_column(column)
    for column in ("think", "no_think", "gain"):
        table.add_column(column, justify="right", no_wrap=True)
    for task in task_names(models):
        _add_task(table, task, [model for model in models if task in model.tasks])
    return table


def _add_task(table: Table, task: str, models: Sequence[ModelScores]) -> None:
    for index, model in enumerate(models):
        gain = model.gain(task)
        table.add_row(
            # Text, not str: a name may hold square brackets, which rich would read as markup.
            Text(task if index == 0 else ""),
            Text(short_label(model.model)),
            Text(score_text(model.score(task, "think"))),
            Text(score_text(model.score(task, "no_think"))),
            Text(gain_text(gain), style=_style(gain)),
            end_section=index == len(models) - 1,
        )


def _style(gain: Change | None) -> str:
    if gain is None or not gain.measurable:
        return "dim"
    return "bold" if gain.value > 0 else "bold red"
