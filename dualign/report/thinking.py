"""Sections on thinking: how long it is, and what it is worth as problems get harder."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from dualign.data.conversation import MODES
from dualign.evaluation.sampled import by_budget, mean_share, problem_means
from dualign.evaluation.scores import Score, mean_interval, short_label, task_names
from dualign.report.blocks import Gallery, Paragraph, Picture, Section, Table
from dualign.report.conclusions import Evaluated, think_tokens
from dualign.report.groups import FEW_TASKS
from dualign.report.plots import difficulty_plot, lengths_plot
from dualign.report.runs import ModelEvaluation, Row


def thinking_sections(evaluated: Evaluated) -> Iterator[Section]:
    """Yield how long the thinking is: a table of all models, plots of the last two for a few tasks."""
    models = evaluated.models
    recent = models[-2:]
    pictures = []
    for i, task in enumerate(task_names([model.scores for model in recent])[:FEW_TASKS]):
        lengths = {
            short_label(m.scores.model): list(think_tokens(m, task).values()) for m in recent
        }
        lengths = {model: values for model, values in lengths.items() if values}
        if lengths:
            pictures.append(lengths_plot(f"lengths-{i}", task, lengths))
    if pictures:
        note = Paragraph(
            text="Thinking tokens in think mode: means with 95 % intervals.", quiet=True
        )
        blocks = (note, _lengths_table(models), Gallery(pictures=tuple(pictures)))
        yield Section(name="lengths", title="How long the thinking is", blocks=blocks)


def _lengths_table(models: Sequence[ModelEvaluation]) -> Table:
    """Return the means with a column for each task; with many tasks, a row for each."""
    tasks = task_names([model.scores for model in models])
    columns = []
    for model in models:
        lengths = {task: list(think_tokens(model, task).values()) for task in tasks}
        every = [length for values in lengths.values() for length in values]
        cells = [_mean_text(values) for values in lengths.values()]
        total = [_mean_text(every)] if len(tasks) > 1 else []
        columns.append((short_label(model.scores.model), *cells, *total))
    names = (*tasks, *(["all"] if len(tasks) > 1 else []))
    if len(tasks) <= FEW_TASKS:
        return Table(columns=("model", *names), rows=tuple(columns))
    head, *rows = zip(("task", *names), *columns, strict=True)
    return Table(columns=head, rows=tuple(rows))


def _mean_text(values: Sequence[float]) -> str:
    mean = mean_interval(values)
    return f"{mean.value:.1f} [{mean.low:.1f}, {mean.high:.1f}]" if mean else "-"


def difficulty_sections(evaluated: Evaluated) -> Iterator[Section]:
    """Yield the accuracy of the last model by the difficulty of the problems."""
    model = evaluated.models[-1]
    pictures: list[Picture] = []
    for i, task in enumerate(task_names((model.scores,))[:FEW_TASKS]):
        by_mode: dict[str, dict[str, Score]] = {
            mode: _by_difficulty(model.samples, task, mode) for mode in MODES
        }
        if any(len(levels) > 1 for levels in by_mode.values()):
            pictures.append(difficulty_plot(f"difficulty-{i}", task, by_mode))
    if pictures:
        note = f"{short_label(model.scores.model)}, with 95 % intervals."
        blocks = (Paragraph(text=note, quiet=True), Gallery(pictures=tuple(pictures)))
        yield Section(name="difficulty", title="Accuracy by difficulty", blocks=blocks)


def _by_difficulty(samples: Sequence[Row], task: str, mode: str) -> dict[str, Score]:
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in by_budget(samples)[None]:
        if (row.get("task"), row.get("mode")) == (task, mode) and row.get("difficulty") is not None:
            groups[row["difficulty"]].append(row)
    numbers = all(isinstance(level, int | float) for level in groups)
    ordered = sorted(groups) if numbers else sorted(groups, key=str)
    return {str(level): _share(groups[level]) for level in ordered}


def _share(answers: Sequence[Row]) -> Score:
    share, (low, high) = mean_share(answers)
    return Score(accuracy=share, low=low, high=high, n=len(problem_means(answers)))
