"""The table, page and plots of an experiment, from experiment.json."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable
from rich.text import Text as Cell

from dualign.data.conversation import MODES
from dualign.evaluation.scores import (
    Change,
    ModelScores,
    Score,
    change_text,
    gain_text,
    percent,
    score_text,
    task_names,
)
from dualign.report.blocks import (
    Block,
    Bullets,
    Details,
    Gallery,
    Paragraph,
    Picture,
    Report,
    Section,
    Table,
)
from dualign.report.experiment_plots import curves_plot, relation_plot
from dualign.report.key_figures import duration
from dualign.report.plots import accuracy_plot
from dualign.report.render import render_html, render_markdown
from dualign.report.report import write_pictures
from dualign.report.sweep import format_setting
from dualign.report.sweep_plots import line_plot, pareto_plot

Entry = Mapping[str, Any]
_PICTURES = "report"
_LEGEND = (
    "Accuracies in percent, the mean of the tasks, with 95 % intervals. Against: the paired change on "
    "the same problems, in points with its 95 % interval, in brackets where that holds 0; +won -lost: "
    "problems that one of the two alone solves."
)
_SHORT_LEGEND = (
    "Accuracies in percent. Against: the paired change in points, in brackets where its 95 % interval "
    "holds 0; +won -lost problems. Intervals and the other figures are in report.html."
)
_WIDE = (
    "against the best",
    "chosen",
    "rejected",
    "loss",
    "leak",
    "time",
)  # columns of the report alone
_HELD_OUT = (
    "Held out, at the end or the last rung: margin of chosen over rejected, and log p(run) - "
    "log p(reference) of the chosen and of the rejected answers, in nats of a whole answer. These are "
    "answers of the data, so their mean log-ratios are no estimate of the KL divergence."
)


def _columns(record: Entry) -> tuple[str, ...]:
    """Return the column names: those for which some run has a figure."""
    names = [*record["vary"].values(), "state", record["score"]]
    return (*names, *(name for name, _ in _figures(record)), "time")


def _rows(record: Entry, *, short: bool = False) -> Iterator[tuple[str, ...]]:
    """Yield a row for each run, in the order of the grid; `short`: changes without their intervals."""
    figures = _figures(record, short=short)
    for entry in record["runs"]:
        settings = [
            format_setting(entry["point"][key]) if key in entry["point"] else "-"
            for key in record["vary"]
        ]
        state = "best" if entry["best"] else entry["state"]
        value = "-" if entry["value"] is None else f"{entry['value']:.4g}"
        cells = (cell(entry) for _, cell in figures)
        yield (*settings, state, value, *cells, duration(entry["seconds"]))


def _figures(record: Entry, *, short: bool = False) -> list[tuple[str, Any]]:
    """Return (column, entry -> text) of the figures that some run has."""
    parent = record["parent"]
    candidates: list[tuple[str, Any]] = []
    for mode in MODES:
        candidates.append((mode, lambda e, m=mode: _accuracy(e["modes"].get(m))))
    for mode in MODES:
        name = f"{mode} against {parent}"
        candidates.append((name, lambda e, m=mode: _won(e["against_parent"].get(m), short=short)))
    for mode in MODES:
        name = f"{mode} against the best"
        candidates.append((name, lambda e, m=mode: _won(e["against_best"].get(m), short=short)))
    candidates += [
        ("thinking tokens", lambda e: _number(e["modes"].get("think", {}).get("think_tokens"), 0)),
        ("leak", lambda e: _percent(e["modes"].get("no_think", {}).get("leak_rate"))),
        ("margin", lambda e: _number(e["held_out"].get("margin"), 2)),
        ("chosen", lambda e: _number(e["held_out"].get("chosen"), 2)),
        ("rejected", lambda e: _number(e["held_out"].get("rejected"), 2)),
        ("loss", lambda e: _number(e["held_out"].get("loss"), 3)),
    ]
    for mode in MODES:
        candidates.append((f"KL, {mode}", lambda e, m=mode: _number((e["kl"] or {}).get(m), 4)))
    return [
        (name, cell)
        for name, cell in candidates
        if any(cell(entry) != "-" for entry in record["runs"])
    ]


def _accuracy(cell: Entry | None) -> str:
    if not cell:
        return "-"
    low, high = cell["accuracy_ci"]
    return score_text(Score(accuracy=cell["accuracy"], low=low, high=high, n=cell["n"]))


def _won(cell: Entry | None, *, short: bool) -> str:
    if not cell:
        return "-"
    change = Change.of(cell["value"], cell["ci"])
    text = gain_text(change) if short else change_text(change)
    return f"{text} +{cell['won']} -{cell['lost']}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else percent(value)


def terminal_table(record: Entry) -> RichTable:
    """Return the figures that fit a terminal, the best run in bold; the others are in the report."""
    evaluated = any(entry["modes"] for entry in record["runs"])
    table = RichTable(
        title=f"Experiment: {record['name']}",
        caption=_SHORT_LEGEND if evaluated else None,
        title_justify="left",
        caption_justify="left",
    )
    kept = [i for i, name in enumerate(_columns(record)) if not name.endswith(_WIDE)]
    for i in kept:
        table.add_column(_columns(record)[i], justify="right", overflow="fold")
    for row, entry in zip(_rows(record, short=True), record["runs"], strict=True):
        style = "bold" if entry["best"] else "" if entry["state"] == "finished" else "dim"
        table.add_row(*(Cell(row[i]) for i in kept), style=style)
    return table


def experiment_markdown(record: Entry) -> str:
    """Return table.md: the conclusions, and the table."""
    return render_markdown(_report(record, pictures=False), picture_folder=_PICTURES)


def write_page(out: Path, record: Entry) -> None:
    """Write report.html, report.md and report/*.png into the experiment's folder."""
    report = _report(record, pictures=True)
    html, markdown = render_html(report), render_markdown(report, picture_folder=_PICTURES)
    write_pictures(out / _PICTURES, report)
    (out / "report.html").write_text(html, encoding="utf-8", errors="replace")
    (out / "report.md").write_text(markdown, encoding="utf-8", errors="replace")


def _report(record: Entry, *, pictures: bool) -> Report:
    finished = sum(entry["state"] == "finished" for entry in record["runs"])
    facts = {
        "Recipe": record["recipe"],
        "Varies": ", ".join(record["vary"]),
        "Runs": f"{len(record['runs'])}, {finished} finished",
        "Score": record["score"],
        "Time": duration(record["seconds"]),
    }
    short = Section(
        name="findings", title="In short", blocks=(Bullets(items=tuple(record["says"])),)
    )
    sections = [short, *_sections(record, pictures=pictures)]
    title = f"Experiment: {record['name']}"
    return Report(title=title, facts=tuple(facts.items()), sections=tuple(sections))


def _sections(record: Entry, *, pictures: bool) -> Iterator[Section]:
    blocks: list[Block] = [Paragraph(text=text, quiet=True) for text in _legends(record)]
    width = len(record["vary"]) + 1
    blocks.append(Table(columns=_columns(record), rows=tuple(_rows(record)), text_columns=width))
    yield Section(name="runs", title="Runs side by side", blocks=tuple(blocks))
    if any(setting["seeds"] > 1 for setting in record["settings"]):
        yield Section(name="settings", title="Settings over their seeds", blocks=(_seeds(record),))
    drawn = _pictures(record) if pictures else []
    if drawn:
        yield Section(name="plots", title="Plots", blocks=(Gallery(pictures=tuple(drawn)),))
    failed = [entry for entry in record["runs"] if entry["failure"]]
    if failed:
        details = tuple(Details(title=entry["label"], text=entry["failure"]) for entry in failed)
        yield Section(name="failures", title="Runs that failed", blocks=details)


def _legends(record: Entry) -> Iterator[str]:
    if any(entry["modes"] for entry in record["runs"]):
        yield _LEGEND
    if any("margin" in entry["held_out"] for entry in record["runs"]):
        yield _HELD_OUT
    if record["kl"]:
        yield record["kl"]


def _seeds(record: Entry) -> Table:
    """Return a row for each setting: the mean of its seeds, and their standard deviation."""
    keys = [key for key in record["vary"] if key.rpartition(".")[2] != "seed"]
    body = []
    for setting in record["settings"]:
        point = record["runs"][setting["runs"][0]]["point"]
        cells = [format_setting(point[key]) if key in point else "-" for key in keys]
        figures = (_number(setting["value"], 4), _number(setting["spread"], 4))
        body.append((*cells, str(setting["seeds"]), *figures))
    names = [record["vary"][key] for key in keys]
    return Table(
        columns=(*names, "seeds", f"mean {record['score']}", "standard deviation"),
        rows=tuple(body),
        text_columns=len(names),
    )


def _pictures(record: Entry) -> list[Picture]:
    evaluated = [entry for entry in record["runs"] if entry["modes"]]
    plots = []
    if any(len(entry["curve"]) > 1 for entry in record["runs"]):
        plots.append(curves_plot("curves", record))
    if evaluated:
        models = [ModelScores(model=_values(e), tasks=e["tasks"]) for e in evaluated]
        plots += [
            accuracy_plot(f"accuracy-{i}", task, models)
            for i, task in enumerate(task_names(models))
        ]
        plots.append(pareto_plot("modes", record["name"], evaluated))
        plots.append(relation_plot("thinking", record, "thinking tokens"))
    if any(entry["kl"] for entry in evaluated):
        plots.append(relation_plot("kl", record, "KL"))
    plots += _line(record, evaluated)
    return plots


def _values(entry: Entry) -> str:
    """Return the values of a run without their keys, for the axis of a plot: `0.1, 0.002`."""
    return ", ".join(format_setting(value) for value in entry["point"].values())


def _line(record: Entry, evaluated: Sequence[Entry]) -> Iterator[Picture]:
    """Yield the scores along the key that varies, if it is one alone and a number."""
    if len(record["vary"]) != 1 or len(evaluated) < 2:
        return
    (key, short), *_ = record["vary"].items()
    values = [entry["point"].get(key) for entry in evaluated]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        renamed = [{**entry, "point": {short: entry["point"][key]}} for entry in evaluated]
        yield line_plot("along", record["name"], short, renamed)
