"""The section on thinking budgets: accuracy and tokens at each, and the budget that is enough."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from dualign.evaluation.budget_table import BUDGET_COLUMNS, BUDGET_LEGEND, budget_notes, budget_rows
from dualign.evaluation.scores import ModelScores, percent, short_label, task_names
from dualign.report.blocks import Bullets, Gallery, Paragraph, Picture, Section, Table
from dualign.report.conclusions import Evaluated
from dualign.report.plots import COLORS, label_text, mark, picture

_DRAWN = 3  # the last models of a plot; more lines can't be told apart


def budget_sections(evaluated: Evaluated) -> Iterator[Section]:
    """Yield the budgets of all models as a table, and a curve for each task."""
    metrics = budget_figures(evaluated.scores)
    rows = tuple(map(tuple, budget_rows(metrics)))
    if rows:
        table = Table(columns=BUDGET_COLUMNS, rows=rows, text_columns=2)
        note = Paragraph(text=BUDGET_LEGEND, quiet=True)
        notes = Bullets(items=tuple(budget_notes(metrics)))
        gallery = Gallery(pictures=tuple(budget_plots(evaluated.scores)))
        blocks = (note, table, notes, gallery)
        yield Section(name="budgets", title="Thinking budgets", blocks=blocks)


def budget_figures(models: Sequence[ModelScores]) -> dict[str, Any]:
    """Return evaluated models in the form of metrics.json."""
    return {"all": [{"model": model.model, "tasks": model.tasks} for model in models]}


def budget_plots(models: Sequence[ModelScores]) -> Iterator[Picture]:
    """Yield a plot for each task that has budgets."""
    for i, task in enumerate(task_names(models)):
        cells = {
            short_label(model.model): cell
            for model in models
            if (cell := model.tasks.get(task, {}).get("think", {})).get("budgets")
        }
        if cells:
            yield _budget_plot(f"budgets-{i}", task, cells)


def _budget_plot(name: str, task: str, cells: Mapping[str, Mapping[str, Any]]) -> Picture:
    """Plot accuracy over budgets, on a logarithmic axis: the last model with 95 % intervals, those
    before it in gray; no budget stands at the right end.

    Args:
        cells: model -> its metrics in think mode.
    """
    shown = list(cells.items())[-_DRAWN:]

    def draw(axes: Axes) -> None:
        budgets = sorted(
            {e["budget"] for _, cell in shown for e in cell["budgets"] if e["budget"] is not None}
        )
        places = {budget: math.log2(1 + budget) for budget in budgets}
        end = max(places.values(), default=0.0) + 1
        for (model, cell), line in zip(shown, (":", "--", "-")[-len(shown) :], strict=True):
            entries = cell["budgets"]
            x = [places.get(entry["budget"], end) for entry in entries]
            y = [100 * entry["accuracy"] for entry in entries]
            if model == shown[-1][0]:
                down, up = _errors(entries)
                style = {**mark("think"), "label": label_text(model, 24)}
                axes.errorbar(x, y, yerr=[down, up], linestyle=line, **style)
            else:
                axes.plot(x, y, line, marker=".", color=COLORS[""], label=label_text(model, 24))
        axes.set_xticks([*places.values(), end], [*(f"{budget:,}" for budget in places), "none"])
        axes.tick_params(axis="x", labelrotation=30 if len(places) > 6 else 0)
        axes.set_ylim(-4, 104)
        axes.set_xlabel("thinking budget, tokens")
        axes.set_ylabel("accuracy, %")

    last = shown[-1][1]["budgets"]
    steps = ", ".join(
        f"{'none' if entry['budget'] is None else entry['budget']}: {percent(entry['accuracy'])}"
        for entry in last
    )
    return picture(name, f"{task}: accuracy by thinking budget ({steps})", draw, title=task)


def _errors(entries: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Return the lengths of the intervals downwards and upwards, in percent."""
    down = [100 * max(0.0, entry["accuracy"] - entry["accuracy_ci"][0]) for entry in entries]
    up = [100 * max(0.0, entry["accuracy_ci"][1] - entry["accuracy"]) for entry in entries]
    return down, up
