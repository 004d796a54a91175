"""Tables of an evaluation, for the terminal and as Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from dualign.data.conversation import MODES
from dualign.evaluation.scores import (
    Change,
    Score,
    change_text,
    percent,
    read_scores,
    score_text,
    short_label,
    task_names,
)

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
    "think tokens [95 %]",
    "answer tokens",
)
_LEGEND = (
    "In percent. gain: think less no_think on the same problems, in points; in parentheses if not "
    "measurable. closed: the think block was opened and closed. leak: a think tag out of place. "
    "empty: no thinking. cut: the token limit was reached while thinking. "
    "Tokens: of thinking the mean, of answers the median / 90th percentile."
)


def terminal_table(metrics: Mapping[str, Any]) -> Table:
    """Build the table of tasks: a row for each task, model and mode."""
    table = Table(title="Evaluation", caption=_LEGEND, title_justify="left", caption_justify="left")
    for index, name in enumerate(_COLUMNS):
        table.add_column(name, justify="left" if index < 3 else "right", no_wrap=index > 2)
    rows = list(_rows(metrics))
    for index, row in enumerate(rows):
        last = index + 1 == len(rows) or rows[index + 1][0] != row[0]
        # Text, not str: rich would read square brackets in a name as markup.
        table.add_row(*map(Text, row), end_section=last)
    return table


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


def terminal_pairs(metrics: Mapping[str, Any]) -> Table:
    """Build the table of preference pairs: a row for each file, model and mode."""
    table = Table(
        title="Preference pairs", caption=PAIR_LEGEND, title_justify="left", caption_justify="left"
    )
    for index, name in enumerate(PAIR_COLUMNS):
        table.add_column(name, justify="left" if index < 3 else "right", no_wrap=index > 2)
    for row in pair_rows(metrics):
        table.add_row(*map(Text, row))
    return table


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
    lines = [
        _line(_COLUMNS),
        _line(["---"] * len(_COLUMNS)),
        *map(_line, _rows(metrics)),
        "",
        _LEGEND,
    ]
    if metrics["changes"]:
        columns = (
            "model",
            "against",
            "task",
            "mode",
            "change of accuracy [95 %]",
            "change of think tokens, % [95 %]",
        )
        lines += ["", "## Model against model, on the same problems", ""]
        lines += [
            _line(columns),
            _line(["---"] * len(columns)),
            *map(_line, _changes(metrics["changes"])),
        ]
    if rows := list(pair_rows(metrics)):
        lines += ["", "## Preference pairs", "", _line(PAIR_COLUMNS)]
        lines += [_line(["---"] * len(PAIR_COLUMNS)), *map(_line, rows), "", PAIR_LEGEND]
    for entry in metrics["all"]:
        if not entry["mode_switch"]:
            lines += ["", f"{short_label(entry['model'])}: {_NO_SWITCH}"]
    return "\n".join(lines) + "\n"


_NO_SWITCH = (
    "its chat template has no mode switch, so both modes got the same prompt and the token limit of "
    "think mode."
)


def _rows(metrics: Mapping[str, Any]) -> Iterator[list[str]]:
    models = read_scores(metrics, where="metrics.json")
    for task in task_names(models):
        for model in models:
            for mode in MODES:
                cell = model.tasks[task][mode]
                yield [
                    task,
                    short_label(model.model),
                    mode,
                    score_text(model.score(task, mode)),
                    change_text(model.gain(task)) if mode == "think" else "",
                    *(
                        percent(cell[key])
                        for key in (
                            "closed_rate",
                            "leak_rate",
                            "empty_think_rate",
                            "cut_in_think_rate",
                        )
                    ),
                    _mean(cell["think_tokens"]),
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
            change_text(_thinking(change)),
        ]


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


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
