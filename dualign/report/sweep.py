"""The table and plots of a sweep, from sweep.json, for the terminal, its folder and the report."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table as RichTable
from rich.text import Text as Cell

from dualign.data.conversation import MODES
from dualign.evaluation.scores import Change, Score, change_text, percent, score_text
from dualign.report.blocks import Block, Bullets, Gallery, Paragraph, Picture, Section, Table
from dualign.report.key_figures import duration
from dualign.report.runs import StageRun
from dualign.report.sweep_plots import line_plot, pareto_plot

Entry = Mapping[str, Any]
_LEGEND = (
    "Accuracies in percent, the mean of the tasks, with 95 % intervals. Against the best: paired, "
    "problem by problem, in points; in brackets where its 95 % interval holds 0. * no other is better "
    "in one mode and as good in the other. closed, cut: of the think blocks. leak: thinking in no_think."
)
_BEST = "best"


def columns(sweep: Entry) -> tuple[str, ...]:
    """Return the column names of the table."""
    names = tuple(sweep["vary"]) or ("models",)
    if sweep["objective"] == "command":
        return (*names, "score", "front", "time")
    rates = ("closed", "cut", "leak")
    return (*names, *MODES, sweep["objective"], "against the best", "front", *rates, "time")


def rows(sweep: Entry) -> Iterator[tuple[str, ...]]:
    """Yield a row for each candidate, in the order of their evaluation."""
    for entry in sweep["candidates"]:
        names = [format_setting(entry["point"][name]) for name in sweep["vary"]] or [entry["label"]]
        mark = _BEST if entry["best"] else "*" if entry["front"] else ""
        time = "known" if entry["cached"] else duration(entry["seconds"])
        if entry["failed"]:
            width = len(columns(sweep)) - len(names) - 1
            yield (*names, "can't be merged", *[""] * width)
        elif sweep["objective"] == "command":
            yield (*names, f"{entry['value']:g}", mark, time)
        else:
            yield (*names, *_scores(entry), _against(entry), mark, *_rates(entry), time)


def format_setting(value: Any) -> str:
    """Return a varied setting as text, numbers with six digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _scores(entry: Entry) -> Iterator[str]:
    for mode in MODES:
        cell = entry["modes"][mode]
        low, high = cell["accuracy_ci"]
        yield score_text(Score(accuracy=cell["accuracy"], low=low, high=high, n=0))
    yield percent(entry["value"])


def _against(entry: Entry) -> str:
    if not entry["against"]:
        return ""
    return change_text(Change.of(entry["against"]["value"], entry["against"]["ci"]))


def _rates(entry: Entry) -> Iterator[str]:
    think, no_think = entry["modes"]["think"], entry["modes"]["no_think"]
    yield from map(percent, (think["closed_rate"], think["cut_in_think_rate"]))
    yield percent(no_think["leak_rate"])


def terminal_table(sweep: Entry) -> RichTable:
    """Return the table with the best candidate in bold."""
    caption = None if sweep["objective"] == "command" else _LEGEND
    table = RichTable(
        title=f"Sweep: {sweep['name']}",
        caption=caption,
        title_justify="left",
        caption_justify="left",
    )
    for name in columns(sweep):
        table.add_column(name, justify="right", no_wrap=True)
    for row, entry in zip(rows(sweep), sweep["candidates"], strict=True):
        # Text, not str: a name may hold square brackets, which rich would read as markup.
        style = "bold" if entry["best"] else "dim" if entry["failed"] else ""
        table.add_row(*map(Cell, row), style=style)
    return table


def sweep_markdown(sweep: Entry) -> str:
    """Return table.md: the table, its conclusions, the accuracies of several tasks."""
    lines = [f"# Sweep: {sweep['name']}", "", *_markdown(columns(sweep), rows(sweep)), ""]
    if sweep["objective"] != "command":
        lines += [_LEGEND, ""]
    lines += [f"- {sentence}" for sentence in sweep["says"]]
    tasks = _task_table(sweep)
    if tasks:
        lines += ["", "## Each task", "", *_markdown(tasks.columns, tasks.rows)]
    return "\n".join(lines) + "\n"


def _markdown(head: Sequence[str], body: Any) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *body):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _task_table(sweep: Entry) -> Table | None:
    """Return the accuracies of each task; None if there are fewer than two."""
    scored = [entry for entry in sweep["candidates"] if entry["tasks"]]
    tasks = list(scored[0]["tasks"]) if scored else []
    if len(tasks) < 2:
        return None
    accuracies = []
    for entry in scored:
        cells = [entry["tasks"][task][mode] for task in tasks for mode in MODES]
        accuracies.append((entry["label"], *(percent(cell["accuracy"]) for cell in cells)))
    return Table(
        columns=("candidate", *(f"{task}, {mode}" for task in tasks for mode in MODES)),
        rows=tuple(accuracies),
        caption="Accuracy on each task, percent",
    )


def pictures(sweep: Entry, *, prefix: str = "") -> list[Picture]:
    """Plot the modes against each other, and the scores along a number if only that varies."""
    entries = [entry for entry in sweep["candidates"] if not entry["failed"]]
    plots = []
    if sweep["objective"] != "command":
        plots.append(pareto_plot(f"{prefix}pareto", sweep["name"], entries))
    if len(sweep["vary"]) == 1 and all(_is_number(entry, sweep["vary"][0]) for entry in entries):
        name = sweep["vary"][0]
        plots.append(line_plot(f"{prefix}scores", sweep["name"], name, entries))
    return plots


def _is_number(entry: Entry, name: str) -> bool:
    value = entry["point"][name]
    return isinstance(value, int | float) and not isinstance(value, bool)


def sweep_sections(stages: Sequence[StageRun]) -> Iterator[Section]:
    """Yield a section for each sweep stage of the pipeline."""
    for stage in stages:
        if stage.sweep is not None:
            yield Section(
                name=f"sweep-{stage.name}",
                title=f"Sweep: {stage.name}",
                blocks=tuple(_blocks(stage.name, stage.sweep)),
            )


def _blocks(name: str, sweep: Entry) -> Iterator[Block]:
    yield Bullets(items=tuple(sweep["says"]))
    if sweep["objective"] != "command":
        yield Paragraph(text=_LEGEND, quiet=True)
    yield Table(
        columns=columns(sweep), rows=tuple(rows(sweep)), text_columns=0 if sweep["vary"] else 1
    )
    drawn = pictures(sweep, prefix=f"{name}-")
    if drawn:
        yield Gallery(pictures=tuple(drawn))
    tasks = _task_table(sweep)
    if tasks:
        yield tasks
