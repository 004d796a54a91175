"""The section on metrics of harnesses, by their own names: what their leaderboards print."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dualign.data.conversation import MODES
from dualign.evaluation.scores import ModelScores, short_label, task_names
from dualign.report.blocks import Paragraph, Section, Table
from dualign.report.conclusions import Evaluated
from dualign.report.groups import task_sources


def harness_sections(evaluated: Evaluated) -> Iterator[Section]:
    """Yield every metric that a harness gave for a task, in each mode, for all models."""
    models = evaluated.scores
    rows = [row for task in task_names(models) for row in _rows(models, task)]
    if not rows:
        return
    sources = task_sources(evaluated.stages)
    versions = dict.fromkeys(
        f"{source['harness']} {source.get('version', '')}".strip()
        for source in sources.values()
        if "harness" in source
    )
    by = f" Of {' and '.join(versions)}." if versions else ""
    text = f"As the harness gives them, with 95 % intervals: name of the metric, filter.{by}"
    columns = ("task", "metric", "mode", *(short_label(model.model) for model in models))
    table = Table(columns=columns, rows=tuple(rows), text_columns=3)
    blocks = (Paragraph(text=text, quiet=True), table)
    yield Section(name="harness", title="Metrics of the harness", blocks=blocks)


def _rows(models: Sequence[ModelScores], task: str) -> Iterator[tuple[str, ...]]:
    """Yield (task, metric, mode, value of each model)."""
    cells = {
        (model.model, mode): model.tasks.get(task, {}).get(mode, {}).get("metrics") or {}
        for model in models
        for mode in MODES
    }
    for metric in dict.fromkeys(name for figures in cells.values() for name in figures):
        for mode in MODES:
            figures = [cells[model.model, mode].get(metric) for model in models]
            if any(figures):
                yield task, metric, mode, *map(_text, figures)


def _text(figure: Mapping[str, Any] | None) -> str:
    if not figure or not isinstance(figure.get("value"), int | float):
        return "-"
    interval = figure.get("ci")
    spread = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    return f"{figure['value']:.4f}{spread}"
