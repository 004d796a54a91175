"""The section on long prompts: curves over lengths, forms of problems, and depths of needles."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from dualign.data.conversation import MODES
from dualign.evaluation.lengths import (
    LENGTHS_LEGEND,
    THRESHOLD,
    Curve,
    curves_of,
    length_columns,
    length_rows,
)
from dualign.evaluation.scores import percent, short_label
from dualign.report.blocks import Block, Gallery, Paragraph, Picture, Section, Table
from dualign.report.conclusions import Evaluated
from dualign.report.plots import COLORS, LINES, mark, picture
from dualign.report.runs import Row
from dualign.tasks.long.source import length_text

_MODELS_IN_PLOTS = 4  # the last ones
_DEPTHS = 5  # rows of the heat map


def long_context_sections(evaluated: Evaluated) -> Iterator[Section]:
    """Yield the table of lengths, a curve of each recent model, and the last one's forms and depths."""
    curves = [
        curve for stage in evaluated.stages if stage.metrics for curve in curves_of(stage.metrics)
    ]
    if not curves:
        return
    table = Table(
        columns=tuple(length_columns(curves)),
        rows=tuple(map(tuple, length_rows(curves))),
        text_columns=3,
    )
    last = curves[-1][0]
    blocks: list[Block] = [
        Paragraph(text=LENGTHS_LEGEND, quiet=True),
        table,
        Gallery(pictures=tuple(_curve_plots(curves))),
        _forms_table(last, [curve for model, curve in curves if model == last]),
    ]
    samples = [row for model in evaluated.models[-1:] for row in model.samples]
    if depths := tuple(_depth_plots(samples)):
        label = short_label(evaluated.models[-1].scores.model)
        text = f"{label}: scores by the place of the needle, 0 is the start of the text."
        blocks += [Paragraph(text=text, quiet=True), Gallery(pictures=depths)]
    yield Section(name="long-context", title="Long context", blocks=tuple(blocks))


def _forms_table(model: str, curves: Sequence[Curve]) -> Table:
    lengths = sorted({point["length"] for curve in curves for point in curve["points"]})
    rows = []
    for curve in curves:
        points = {point["length"]: point["forms"] for point in curve["points"]}
        for form in dict.fromkeys(form for forms in points.values() for form in forms):
            cells = [percent(points.get(length, {}).get(form)) for length in lengths]
            rows.append((curve["language"], form, curve["mode"], *cells))
    rows.sort(key=lambda row: row[:2])
    return Table(
        columns=("language", "form", "mode", *map(length_text, lengths)),
        rows=tuple(rows),
        text_columns=3,
        caption=f"Forms of problems, {short_label(model)}: score in percent",
    )


def _curve_plots(curves: Sequence[tuple[str, Curve]]) -> Iterator[Picture]:
    models = list(dict.fromkeys(model for model, _ in curves))[-_MODELS_IN_PLOTS:]
    languages = list(dict.fromkeys(curve["language"] for _, curve in curves))
    for language in languages:
        for model in models:
            own = {
                curve["mode"]: curve
                for name, curve in curves
                if (name, curve["language"]) == (model, language)
            }
            if own:
                number = f"{models.index(model)}-{language}"
                title = f"{short_label(model)}, {language}" if languages[1:] else short_label(model)
                yield _curve_plot(f"long-context-{number}", title, own)


def _curve_plot(name: str, title: str, by_mode: Mapping[str, Curve]) -> Picture:
    """Plot the scores of a model by length, with the positions that it was made for."""

    def draw(axes: Axes) -> None:
        lengths: set[int] = set()
        for mode, shift in (("think", 0.98), ("no_think", 1.02)):
            points = by_mode[mode]["points"]
            lengths |= {point["length"] for point in points}
            errors = [
                [100 * (point["score"] - point["ci"][0]) for point in points],
                [100 * (point["ci"][1] - point["score"]) for point in points],
            ]
            axes.errorbar(
                [point["length"] * shift for point in points],
                [100 * point["score"] for point in points],
                yerr=errors,
                linestyle=LINES[mode],
                **mark(mode),
            )
        axes.axhline(100 * THRESHOLD, color=COLORS[""], linewidth=1, linestyle=":")
        window = by_mode["think"]["window"]
        if window and min(lengths) <= window <= 2 * max(lengths):
            axes.axvline(window, color=COLORS[""], linewidth=1, linestyle="--", label="window")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(lengths), [length_text(length) for length in sorted(lengths)])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(-4, 104)
        axes.set_xlabel("tokens of a problem")
        axes.set_ylabel("score, %")

    return picture(name, f"{title}: score by length of the problem", draw, title=title)


def _depth_plots(samples: Sequence[Row]) -> Iterator[Picture]:
    for mode in MODES:
        if cells := _depth_cells(samples, mode):
            yield _depth_plot(mode, cells)


def _depth_cells(samples: Sequence[Row], mode: str) -> dict[tuple[int, int], list[float]]:
    """Return the scores of answers about one needle, by (fifth of the text, length)."""
    cells: dict[tuple[int, int], list[float]] = defaultdict(list)
    for row in samples:
        depth, length = row.get("depth"), row.get("length")
        if row.get("mode") == mode and depth is not None and length is not None:
            value = row.get("score", float(bool(row.get("correct"))))
            cells[min(int(depth * _DEPTHS), _DEPTHS - 1), length].append(value)
    return cells


def _depth_plot(mode: str, cells: Mapping[tuple[int, int], Sequence[float]]) -> Picture:
    lengths = sorted({length for _, length in cells})

    def draw(axes: Axes) -> None:
        for (depth, length), values in cells.items():
            share = sum(values) / len(values)
            column = lengths.index(length)
            axes.bar(
                column, 1, bottom=depth, width=1, color=COLORS[mode], alpha=0.08 + 0.72 * share
            )
            axes.text(column, depth + 0.5, f"{100 * share:.0f}", ha="center", va="center")
        axes.set_xticks(range(len(lengths)), [length_text(length) for length in lengths])
        edges = range(_DEPTHS + 1)
        axes.set_yticks(edges, [f"{edge / _DEPTHS:.1f}" for edge in edges])
        axes.set_ylim(_DEPTHS, 0)
        axes.grid(visible=False)
        axes.set_xlabel("tokens of a problem")
        axes.set_ylabel("depth of the needle")

    return picture(
        f"long-context-depth-{mode}", f"{mode}: score by depth and length", draw, title=mode
    )
