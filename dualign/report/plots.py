"""The report's plots: think is blue, filled and solid; no_think is vermilion, hollow and dashed.

Each function returns one small picture: several stand side by side on a wide page and below each
other on a phone, so the letters keep their size. In the SVG, ink takes the color of the page's
text, for light and dark.
"""

import io
import re
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dualign.data.conversation import MODES
from dualign.evaluation.scores import ModelScores, Score, short_label
from dualign.report.blocks import Picture
from dualign.report.runs import Row, Series, series

COLORS = {"think": "#0072B2", "no_think": "#D55E00", "": "#7F7F7F"}
LINES = {"think": "-", "no_think": "--", "": "-"}
_MARKERS = {"think": "o", "no_think": "s", "": "."}
INK = "#010203"  # stands for the color of the page's text; replaced in the SVG
MAX_POINTS = 300
_SIZE = (4.1, 3.0)
# Settings are matplotlib's for the whole process, in which the live report draws while a stage works.
_DRAWING = threading.RLock()
_STYLE: dict[str, Any] = {
    "svg.fonttype": "path",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "grid.color": "#7F7F7F",
    "grid.alpha": 0.3,
    "axes.grid": True,
    "axes.axisbelow": True,
}


def accuracy_plot(name: str, task: str, models: Sequence[ModelScores]) -> Picture:
    """Plot a task: a line for each model, its accuracy in both modes with 95 % intervals."""
    rows = [(short_label(model.model), model, task) for model in models]
    return _scores_plot(name, f"{task}: accuracy of each model", task, rows)


def group_plot(name: str, title: str, model: ModelScores, tasks: Sequence[str]) -> Picture:
    """Plot a model: a line for each task, its accuracy in both modes with 95 % intervals."""
    head = ": ".join(filter(None, (short_label(model.model), title)))
    rows = [(task, model, task) for task in tasks if task in model.tasks]
    return _scores_plot(name, f"{head}: accuracy on each task", head, rows)


def _scores_plot(
    name: str, alt: str, title: str, rows: Sequence[tuple[str, ModelScores, str]]
) -> Picture:
    """Plot a line for each (label, model, task)."""

    def draw(axes: Axes) -> None:
        for mode, shift in (("think", -0.13), ("no_think", 0.13)):
            scores = [(i, model.score(task, mode)) for i, (_, model, task) in enumerate(rows)]
            points = [(i + shift, score) for i, score in scores if score is not None]
            values, errors = _in_percent([score for _, score in points])
            axes.errorbar(values, [y for y, _ in points], xerr=errors, linestyle="", **mark(mode))
        axes.set_yticks(range(len(rows)), [label_text(label, 18) for label, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-4, 104)
        axes.set_xlabel("accuracy, %")

    height = max(2.0, 1.25 + 0.42 * len(rows))
    return picture(name, alt, draw, title=title, size=(_SIZE[0], height))


def loss_plot(name: str, stage: str, log: Sequence[Row]) -> Picture:
    """Plot training loss as thin lines and validation loss as marked lines, in each logged mode."""

    def draw(axes: Axes) -> None:
        starts = ("loss/", "eval_loss/")
        logged = {key.rpartition("/")[2] for row in log for key in row if key.startswith(starts)}
        modes: list[str] = [mode for mode in MODES if mode in logged]
        for mode in modes or [""]:
            suffix, label = (f"/{mode}", mode) if mode else ("", "all rows")
            _line(axes, series(log, f"loss{suffix}"), mode, f"{label}, training", thin=True)
            _line(axes, series(log, f"eval_loss{suffix}"), mode, f"{label}, validation")
        axes.set_ylabel("loss")

    return _curve_picture(name, f"{stage}: loss by step", draw, title=f"{stage}: loss")


def rate_plot(name: str, stage: str, log: Sequence[Row]) -> Picture:
    """Plot the learning rate by step."""

    def draw(axes: Axes) -> None:
        _line(axes, series(log, "learning_rate"), "", "")
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])  # a flat line isn't cut by the frame

    title = f"{stage}: learning rate"
    return _curve_picture(name, f"{title} by step", draw, title=title)


def reward_plot(
    name: str,
    stage: str,
    log: Sequence[Row],
    measure: str,
    prefix: str = "",
    *,
    rated: bool = False,
) -> Picture:
    """Plot a reward measure by step in each mode: margins, accuracies, or rewards of both sides.

    `rated`: of answers without partners, whose sides are logged under TRL's names of a pair's.
    """
    keys = {"rewards": ("chosen", "rejected")}.get(measure, (measure,))
    sides = {"chosen": "desirable", "rejected": "undesirable"} if rated else {}

    def draw(axes: Axes) -> None:
        for mode in MODES:
            for key in keys:
                label = mode if len(keys) == 1 else f"{mode}, {sides.get(key, key)}"
                points = series(log, f"{prefix}rewards/{key}/{mode}")
                _line(axes, points, mode, label, thin=key == "rejected")
        share = "share of answers" if rated else "share of pairs"
        axes.set_ylabel({"accuracies": share}.get(measure, "reward"))
        if measure == "accuracies":
            axes.set_ylim(-0.04, 1.04)

    above = "answers on their side of z" if rated else "chosen above rejected"
    words = {"accuracies": above}.get(measure, measure)
    where = "validation" if prefix else "training"
    title = f"{stage}: {words}, {where}"
    return _curve_picture(name, f"{title}, by step", draw, title=title)


def retention_plot(name: str, stage: str, log: Sequence[Row], task: str) -> Picture:
    """Plot the accuracy on a small task by step, in both modes, while a stage trained."""

    def draw(axes: Axes) -> None:
        for mode in MODES:
            points = series(log, f"eval_retain/{task}/{mode}")
            _line(axes, tuple((step, 100 * value) for step, value in points), mode, mode)
        axes.set_ylabel("accuracy, %")
        axes.set_ylim(-4, 104)

    title = f"{stage}: {label_text(task, 24)}"
    return _curve_picture(name, f"{stage}: accuracy on {task} by step", draw, title=title)


def kl_plot(name: str, stage: str, log: Sequence[Row]) -> Picture:
    """Plot KTO's estimate of the KL to the reference: a thin line in training, a marked one in validation."""

    def draw(axes: Axes) -> None:
        _line(axes, series(log, "kl"), "", "training", thin=True)
        _line(axes, series(log, "eval_kl"), "", "validation")
        axes.set_ylabel("nats")

    title = f"{stage}: z, the KL to the reference"
    return _curve_picture(name, f"{title}, by step", draw, title=title)


def lengths_plot(name: str, task: str, lengths: Mapping[str, Sequence[float]]) -> Picture:
    """Plot the thinking tokens on a task: the last model filled, the one before as an outline."""

    def draw(axes: Axes) -> None:
        top = max(max(values) for values in lengths.values())
        bins = [max(top, 1) * i / 24 for i in range(25)]
        for index, (model, values) in enumerate(lengths.items()):
            last = index == len(lengths) - 1
            label = f"{label_text(model, 20)}, median {statistics.median(values):.0f}"
            kind = (
                {"color": COLORS["think"], "alpha": 0.75}
                if last
                else {"color": INK, "histtype": "step"}
            )
            axes.hist(values, bins=bins, label=label, **kind)
        axes.set_xlabel("thinking tokens (think mode)")
        axes.set_ylabel("answers")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))

    return picture(name, f"{task}: how long the thinking is", draw, title=task, stacked=True)


def row_lengths_plot(name: str, title: str, lengths: Mapping[str, Sequence[int]]) -> Picture:
    """Plot the tokens of the rows of each mode, on a logarithmic scale."""

    def draw(axes: Axes) -> None:
        lowest = min(length for values in lengths.values() for length in values)
        highest = max(length for values in lengths.values() for length in values)
        # From one power of two to another, so that at least two are marked.
        low, high = 2 ** (lowest.bit_length() - 1), 2 ** highest.bit_length()
        edges = [low * (high / low) ** (step / 24) for step in range(25)]
        for mode, values in lengths.items():
            label = f"{mode}, median {statistics.median(values):,.0f}"
            filled = mode == "think"
            axes.hist(
                values,
                bins=edges,
                label=label,
                color=COLORS[mode],
                alpha=0.75 if filled else 1.0,
                histtype="bar" if filled else "step",
                linewidth=0.0 if filled else 1.8,
            )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel("tokens of a row")
        axes.set_ylabel("rows")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))

    return picture(name, f"{title}: how long the rows are", draw, title=title, stacked=True)


def difficulty_plot(name: str, task: str, scores: Mapping[str, Mapping[str, Score]]) -> Picture:
    """Plot accuracy by difficulty (`scores[mode][difficulty]`), with 95 % intervals."""
    levels = list(dict.fromkeys(level for by_level in scores.values() for level in by_level))

    def draw(axes: Axes) -> None:
        for mode, shift in (("think", -0.06), ("no_think", 0.06)):
            by_level = scores.get(mode, {})
            values, errors = _in_percent(list(by_level.values()))
            places = [levels.index(level) + shift for level in by_level]
            axes.errorbar(places, values, yerr=errors, linestyle=LINES[mode], **mark(mode))
        axes.set_xticks(range(len(levels)), [label_text(level, 10) for level in levels])
        if len(levels) > 6 or max(map(len, levels)) > 5:
            axes.tick_params(axis="x", rotation=40)
        axes.set_xlim(-0.5, len(levels) - 0.5)
        axes.set_ylim(-4, 104)
        axes.set_xlabel("difficulty")
        axes.set_ylabel("accuracy, %")

    return picture(name, f"{task}: accuracy by difficulty", draw, title=task)


def cost_plot(name: str, title: str, values: Mapping[str, float], *, digits: int) -> Picture:
    """Plot a horizontal bar for each stage, with its value at the end."""

    def draw(axes: Axes) -> None:
        bars = axes.barh(
            list(range(len(values))), list(values.values()), color=COLORS[""], height=0.62
        )
        axes.bar_label(bars, fmt=f"%.{digits}f", padding=3)
        axes.set_yticks(range(len(values)), [label_text(stage, 18) for stage in values])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set_xlim(0, max(max(values.values()), 1e-9) * 1.2)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.grid(visible=False, axis="y")

    height = max(1.6, 0.75 + 0.32 * len(values))
    return picture(name, title, draw, title=title, size=(_SIZE[0], height))


def _in_percent(scores: Sequence[Score]) -> tuple[list[float], list[list[float]]]:
    """Return the values, and the lengths of their intervals downwards and upwards."""
    values = [100 * score.accuracy for score in scores]
    down = [100 * max(0.0, score.accuracy - score.low) for score in scores]
    up = [100 * max(0.0, score.high - score.accuracy) for score in scores]
    return values, [down, up]


def mark(mode: str) -> dict[str, Any]:
    """Return the style of a mode's error bars."""
    face = COLORS[mode] if mode == "think" else "none"
    marker = {
        "marker": _MARKERS[mode],
        "markersize": 6,
        "markerfacecolor": face,
        "markeredgewidth": 1.4,
    }
    return {"color": COLORS[mode], "label": mode, "capsize": 2.5, "elinewidth": 1.3, **marker}


def _line(axes: Axes, points: Series, mode: str, label: str, *, thin: bool = False) -> None:
    if not points:
        return
    steps, values = zip(*_thinned(points), strict=True)
    style: dict[str, Any] = {"linewidth": 1.0, "alpha": 0.75} if thin else {"linewidth": 2.0}
    if len(steps) <= 25 and not thin:
        face = COLORS[mode] if mode == "think" else "none"
        style |= {"marker": _MARKERS[mode], "markersize": 4.5, "markerfacecolor": face}
    elif len(steps) == 1:
        style["marker"] = "x"
    axes.plot(
        steps,
        values,
        color=COLORS[mode],
        linestyle=LINES[mode],
        label=label_text(label, 40),
        **style,
    )


def _thinned(points: Series) -> Series:
    """Reduce to at most MAX_POINTS points, each the mean of a stretch of steps."""
    if len(points) <= MAX_POINTS:
        return points
    width = -(-len(points) // MAX_POINTS)
    stretches = [points[i : i + width] for i in range(0, len(points), width)]
    return tuple((part[-1][0], statistics.fmean(value for _, value in part)) for part in stretches)


def label_text(text: str, limit: int) -> str:
    """Shorten a label in its middle, and escape what matplotlib would read as mathematics."""
    if len(text) > limit:
        text = f"{text[: limit // 2 - 1]}..{text[-(limit - limit // 2 - 1) :]}"
    return text.replace("$", r"\$")


def _curve_picture(name: str, alt: str, draw: Callable[[Axes], None], *, title: str) -> Picture:
    def with_steps(axes: Axes) -> None:
        draw(axes)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))

    return picture(name, alt, with_steps, title=title)


def picture(
    name: str,
    alt: str,
    draw: Callable[[Axes], None],
    *,
    title: str,
    size: tuple[float, float] = _SIZE,
    stacked: bool = False,
) -> Picture:
    """Return the plot that `draw` makes, with title and legend."""
    # The salt makes the same numbers give the same bytes.
    style = {**_STYLE, "svg.hashsalt": name}
    with _DRAWING, matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title(label_text(title, 46), loc="left")
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            columns = 1 if stacked else 2
            # Only the marker of an error bar: its caps are noise at the size of a legend.
            marks = [h[0] if isinstance(h, ErrorbarContainer) else h for h in handles]
            figure.legend(marks, labels, loc="outside lower center", ncols=columns, fontsize=9)

    def saved(form: str) -> bytes:
        with _DRAWING, matplotlib.rc_context(style):
            return _saved(figure, form, name)

    return Picture(name=name, alt=alt, draw=saved)


def _saved(figure: Figure, form: str, name: str) -> bytes:
    file = io.BytesIO()
    options: dict[str, Any] = {"dpi": 160, "facecolor": "white", "metadata": {"Software": None}}
    if form == "svg":
        options = {"transparent": True, "metadata": {"Date": None, "Creator": None}}
    figure.savefig(file, format=form, **options)
    figure.set_layout_engine("none")  # the other form keeps the places
    return _inline(file.getvalue().decode(), name).encode() if form == "svg" else file.getvalue()


def _inline(svg: str, name: str) -> str:
    """Return the SVG element alone, in the page's ink, with the plot's name before its ids."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(\bid=\"|href=\"#|url\(#)", rf"\g<1>{name}-", svg)
    return svg.replace(INK, "currentColor")
