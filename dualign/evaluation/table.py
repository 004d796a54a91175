"""Tables of an evaluation, for the terminal and as Markdown."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from dualign.data.conversation import MODES
from dualign.evaluation.budget_table import (
    BUDGET_COLUMNS,
    BUDGET_LEGEND,
    budget_notes,
    budget_rows,
)
from dualign.evaluation.language_table import LANGUAGE_COLUMNS, LANGUAGE_LEGEND, language_rows
from dualign.evaluation.lengths import LENGTHS_LEGEND, curves_of, length_columns, length_rows
from dualign.evaluation.scores import (
    Change,
    ModelScores,
    Score,
    change_text,
    percent,
    read_scores,
    score_text,
    short_label,
    task_names,
)
from dualign.evaluation.significance import LEVEL, needed_note
from dualign.evaluation.suite_table import suite_columns, suite_legend, suite_rows

_COLUMNS = (
    "task",
    "model",
    "mode",
    "accuracy [95 %]",
    "gain [95 %]",
    "closed",
    "leak",
    "empty",
    "cut",
    "limit",
    "think tokens [95 %]",
    "answer tokens",
)
_LEGEND = (
    "In percent. gain: think less no_think on the same problems, in points; in parentheses if not "
    "measurable. closed: the think block was opened and closed. leak: a think tag out of place. "
    "empty: no thinking. cut: the token limit was reached while thinking, which is wrong whatever "
    "stands there. limit: the token limit was reached at all. "
    "Tokens: of thinking the mean, of answers the median / 90th percentile."
)
_RATES = ("closed_rate", "leak_rate", "empty_think_rate", "cut_in_think_rate", "unfinished_rate")


def terminal_tables(metrics: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of all that was asked, that of accuracy first."""
    yield _accuracy_table(metrics)
    for build in (
        _suite_table,
        _samples_table,
        _lengths_table,
        _languages_table,
        _budgets_table,
        _pairs_table,
    ):
        if (table := build(metrics)) is not None:
            yield table


def _accuracy_table(metrics: Mapping[str, Any]) -> Table:
    """Build the table of tasks, for 120 columns: a row for each model and mode below its task."""
    notes = (
        _LEGEND,
        _samples_note(metrics),
        needed_note(metrics["tasks"], metrics.get("changes", ())),
    )
    columns = [name.partition(" tokens")[0] for name in _COLUMNS]
    caption = "\n".join(filter(None, notes))
    return _by_task("Evaluation", caption, columns, _rows(metrics, short=True))


def _by_task(
    title: str, caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]
) -> Table:
    """Build a table of rows (task, model, mode, ...) whose tasks stand above their models."""
    table = Table(
        title=title,
        caption=Text(caption),  # rich would read brackets in a task's name as markup
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for index, name in enumerate(("task, model", *columns[2:])):
        justify: Any = "left" if index < 2 else "right"
        table.add_column(name, justify=justify, no_wrap=index > 0, overflow="fold")
    above = ("", "")
    for task, model, *cells in rows:
        # Text, not str: rich would read square brackets in a name as markup.
        if task != above[0]:
            table.add_row(Text(task, style="bold"))
        label = "" if (task, model) == above else f"  {model}"
        table.add_row(*map(Text, (label, *cells)))
        above = (task, model)
    return table


def _by_name(
    title: str, caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]
) -> Table:
    """Build a table whose rows have three names each, then figures."""
    table = Table(title=title, caption=Text(caption), title_justify="left", caption_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < 3 else "right", no_wrap=index > 2)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


SAMPLED_LEGEND = (
    "Of several answers to a problem, in percent: pass@k, the chance that one of k answers is right "
    "(Chen et al. 2021); majority, the answer that most of them give. Intervals take the problems as "
    "clusters of answers."
)


_MOST_COLUMNS = 9  # with intervals, at 120 characters; pass@1, 2, 4 and 8


def _samples_table(metrics: Mapping[str, Any]) -> Table | None:
    columns, *rows = list(sampled_rows(read_scores(metrics, where="metrics.json")))
    if not rows:
        return None
    if len(columns) > _MOST_COLUMNS:
        rows = [[cell.partition(" [")[0] for cell in row] for row in rows]
    return _by_task("Several answers", SAMPLED_LEGEND, columns, rows)


def _suite_table(metrics: Mapping[str, Any]) -> Table | None:
    if not (rows := list(suite_rows(metrics))):
        return None
    title = f"Suite {metrics['suite']['name']}"
    return _by_task(title, suite_legend(metrics), suite_columns(metrics), rows)


def _languages_table(metrics: Mapping[str, Any]) -> Table | None:
    rows = list(language_rows(metrics))
    return _by_task("Languages", LANGUAGE_LEGEND, LANGUAGE_COLUMNS, rows) if rows else None


def _lengths_table(metrics: Mapping[str, Any]) -> Table | None:
    if not (curves := curves_of(metrics)):
        return None
    return _by_name("Lengths", LENGTHS_LEGEND, length_columns(curves), length_rows(curves))


def _budgets_table(metrics: Mapping[str, Any]) -> Table | None:
    if not (rows := list(budget_rows(metrics))):
        return None
    caption = "\n".join((BUDGET_LEGEND, *budget_notes(metrics)))
    return _by_task("Thinking budgets", caption, BUDGET_COLUMNS, rows)


def sampled_rows(models: Sequence[ModelScores]) -> Iterator[list[str]]:
    """Yield the head and the rows of the tasks whose problems had several answers."""
    cells = [
        (task, short_label(model.model), mode, cell)
        for task in task_names(models)
        for model in models
        for mode in MODES
        if "pass_at" in (cell := model.tasks.get(task, {}).get(mode, {}))
    ]
    tries = sorted({int(k) for *_, cell in cells for k in cell["pass_at"]})
    yield ["task", "model", "mode", "answers", *(f"pass@{k}" for k in tries), "majority"]
    for task, model, mode, cell in cells:
        figures = [*(cell["pass_at"].get(str(k)) for k in tries), cell.get("majority")]
        yield [task, model, mode, str(cell["samples"]), *map(_figure_text, figures)]


def _figure_text(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "-"
    low, high = figure["ci"]
    return f"{percent(figure['value'])} [{percent(low, 0)}, {percent(high, 0)}]"


def _samples_note(metrics: Mapping[str, Any]) -> str:
    """Say how many answers a problem had; "" if one."""
    counts = {
        cell.get("samples", 1)
        for model in read_scores(metrics, where="metrics.json")
        for by_mode in model.tasks.values()
        for cell in by_mode.values()
    }
    if max(counts, default=1) == 1:
        return ""
    words = f"{max(counts)}" if len(counts) == 1 else f"Up to {max(counts)}"
    return (
        f"{words} answers to each problem: figures are means over problems, and their intervals "
        "take the problems as clusters."
    )


PAIR_COLUMNS = (
    "pairs",
    "model",
    "mode",
    "n",
    "chosen preferred [95 %]",
    "margin [95 %]",
    "change",
)
PAIR_LEGEND = (
    "Chosen preferred: share of pairs where the chosen answer is more likely, in percent. Margin: mean of "
    "log p(chosen) - log p(rejected), in nats. Change: rise of the margin over the model above, pair by "
    "pair; in parentheses if its 95 % interval includes 0."
)


def _pairs_table(metrics: Mapping[str, Any]) -> Table | None:
    rows = list(pair_rows(metrics))
    return _by_name("Preference pairs", PAIR_LEGEND, PAIR_COLUMNS, rows) if rows else None


def pair_rows(metrics: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the cells of `PAIR_COLUMNS` for each file of pairs, model and mode."""
    changes = {(c["model"], c["pairs"], c["mode"]): c for c in metrics.get("pair_changes", ())}
    entries = metrics.get("all") or [metrics]
    for name in entries[0].get("pairs", {}):
        for entry in entries:
            for mode in MODES:
                cell = entry["pairs"][name][mode]
                low, high = cell["accuracy_ci"]
                right = Score(accuracy=cell["accuracy"], low=low, high=high, n=cell["n"])
                change = changes.get((entry["model"], name, mode))
                yield [
                    name,
                    short_label(entry["model"]),
                    mode,
                    str(cell["n"]),
                    score_text(right) if cell["n"] else "-",
                    _nats(cell["margin"], cell["margin_ci"]) if cell["margin_ci"] else "-",
                    rise_text(change) if change else "",
                ]


def rise_text(change: Mapping[str, Any]) -> str:
    """Format the rise of a margin in nats: `+0.52`; in parentheses if it isn't measurable."""
    low, high = change["ci"]
    return f"{change['value']:+.2f}" if low > 0 or high < 0 else f"({change['value']:+.2f})"


def _nats(value: float, interval: Sequence[float]) -> str:
    return f"{value:+.2f} [{interval[0]:+.2f}, {interval[1]:+.2f}]"


def markdown_table(metrics: Mapping[str, Any]) -> str:
    """Return the same rows as Markdown, with each model's change from the one before."""
    notes = (_samples_note(metrics), needed_note(metrics["tasks"], metrics.get("changes", ())))
    lines = [*_markdown(_COLUMNS, _rows(metrics)), "", _LEGEND]
    for note in filter(None, notes):
        lines += ["", note]
    columns, *sampled = sampled_rows(read_scores(metrics, where="metrics.json"))
    lines += _section("Several answers", columns, sampled, SAMPLED_LEGEND)
    if budgets := list(budget_rows(metrics)):
        lines += _section("Thinking budgets", BUDGET_COLUMNS, budgets, BUDGET_LEGEND)
        lines += ["", *(f"- {note}" for note in budget_notes(metrics))]
    if suite := list(suite_rows(metrics)):
        title = f"Suite {metrics['suite']['name']}"
        lines += _section(title, suite_columns(metrics), suite, suite_legend(metrics))
    languages = list(language_rows(metrics))
    lines += _section("Languages", LANGUAGE_COLUMNS, languages, LANGUAGE_LEGEND)
    curves = curves_of(metrics)
    lines += _section("Lengths", length_columns(curves), [*length_rows(curves)], LENGTHS_LEGEND)
    title, changes = "Model against model, on the same problems", _changes(metrics["changes"])
    lines += _section(title, _CHANGE_COLUMNS, [*changes], _CHANGE_LEGEND)
    lines += _section("Preference pairs", PAIR_COLUMNS, [*pair_rows(metrics)], PAIR_LEGEND)
    for entry in metrics["all"]:
        if not entry["mode_switch"]:
            lines += ["", f"{short_label(entry['model'])}: {_NO_SWITCH}"]
    return "\n".join(lines) + "\n"


_CHANGE_COLUMNS = (
    "model",
    "against",
    "task",
    "mode",
    "change of accuracy [95 %]",
    "adjusted p",
    "change of think tokens, % [95 %]",
)
_CHANGE_LEGEND = (
    "p: of the exact paired test (McNemar's; signs of the differences where a problem has several "
    "answers or a graded score), adjusted for all tasks and modes of the two models (Holm 1979); "
    f"* below {LEVEL:g}."
)
_NO_SWITCH = (
    "its chat template has no mode switch, so both modes got the same prompt and the token limit of "
    "think mode."
)


def _rows(metrics: Mapping[str, Any], *, short: bool = False) -> Iterator[list[str]]:
    models = read_scores(metrics, where="metrics.json")
    for task in task_names(models):
        for model in models:
            for mode in MODES:
                cell = model.tasks[task][mode]
                gain = model.gain(task) if mode == "think" else None
                gain_cell = change_text(gain, digits=0 if short else 1) if gain else ""
                yield [
                    task,
                    short_label(model.model),
                    mode,
                    score_text(model.score(task, mode)),
                    gain_cell,
                    *(percent(cell[key]) for key in _RATES),
                    f"{cell['think_tokens']['mean']:.0f}" if short else _mean(cell["think_tokens"]),
                    _lengths(cell["answer_tokens"]),
                ]


def _changes(changes: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for change in changes:
        yield [
            short_label(change["model"]),
            short_label(change["against"]),
            change["task"],
            change["mode"],
            change_text(Change.of(change["value"], change["ci"])),
            _p_text(change.get("p_adjusted")),
            change_text(_thinking(change)),
        ]


def _p_text(p: float | None) -> str:
    if p is None:
        return "-"
    text = f"{p:.3f}" if p >= 0.001 else "< 0.001"
    return f"{text} *" if p < LEVEL else text


def _thinking(change: Mapping[str, Any]) -> Change | None:
    lengths = change.get("think_tokens")
    if not lengths:
        return None
    return Change.of(lengths["value"], lengths["ci"])


def _mean(tokens: Mapping[str, Any]) -> str:
    if not tokens["mean_ci"]:
        return f"{tokens['mean']:.1f}"
    low, high = tokens["mean_ci"]
    return f"{tokens['mean']:.1f} [{low:.1f}, {high:.1f}]" if low < high else f"{tokens['mean']:g}"


def _lengths(tokens: Mapping[str, float]) -> str:
    return f"{tokens['p50']:.0f} / {tokens['p90']:.0f}"


def _section(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], legend: str
) -> list[str]:
    """Return a table below a heading; nothing without rows."""
    return ["", f"## {title}", "", *_markdown(columns, rows), "", legend] if rows else []


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_line(columns), _line(["---"] * len(columns)), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
