"""The plots of a sweep: think against no_think with the front, and scores along a parameter."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from dualign.data.conversation import MODES
from dualign.report.blocks import Picture
from dualign.report.plots import COLORS, INK, LINES, label_text, mark, picture

Entry = Mapping[str, Any]
FRONT, WINNER = "#0072B2", "#D55E00"
_SIZE = (5.2, 4.4)
_MAX_LABELED = 8  # more names would lie on top of each other


def pareto_plot(name: str, title: str, entries: Sequence[Entry]) -> Picture:
    """Plot each candidate's accuracy in think (up) and no_think (right), with 95 % intervals.

    A line joins the Pareto front.
    """

    def draw(axes: Axes) -> None:
        behind = [entry for entry in entries if not entry["front"]]
        front = sorted((entry for entry in entries if entry["front"]), key=_no_think)
        _points(axes, behind, COLORS[""], "other candidates", filled=False)
        _points(axes, front, FRONT, "front: nothing better in both", filled=True)
        if len(front) > 1:
            xs, ys = _xy(front)
            axes.plot(xs, ys, color=FRONT, linewidth=1.2, linestyle=":", drawstyle="steps-post")
        for entry in (entry for entry in entries if entry["best"]):
            x, y = _xy([entry])
            axes.plot(
                x, y, marker="o", markersize=14, markerfacecolor="none",
                markeredgecolor=WINNER, markeredgewidth=2.0, linestyle="",
                label=label_text(f"best: {entry['label']}", 40), zorder=5,
            )  # fmt: skip
        for group in _same_places(front[:_MAX_LABELED]):
            _name(axes, group)
        axes.set_xlabel("no_think accuracy, %")
        axes.set_ylabel("think accuracy, %")
        axes.margins(0.08)

    alt = f"{title}: think accuracy against no_think accuracy of each candidate"
    return picture(name, alt, draw, title=f"{title}: both modes", size=_SIZE, stacked=True)


def _points(axes: Axes, entries: Sequence[Entry], color: str, label: str, *, filled: bool) -> None:
    if not entries:
        return
    xs, ys = _xy(entries)
    across, up = (_reach(entries, mode) for mode in ("no_think", "think"))
    axes.errorbar(
        xs, ys, xerr=across, yerr=up, linestyle="", color=color, ecolor=color,
        elinewidth=1.1, capsize=2.5, alpha=0.4,
    )  # fmt: skip
    axes.plot(
        xs, ys, marker="o", markersize=6.5, linestyle="", color=color, label=label,
        markerfacecolor=color if filled else "none", markeredgewidth=1.4, zorder=4,
    )  # fmt: skip


def _name(axes: Axes, group: Sequence[Entry]) -> None:
    (x,), (y,) = _xy(group[:1])
    axes.annotate(
        label_text("; ".join(entry["label"] for entry in group), 34),
        (x, y), xytext=(7, 6), textcoords="offset points", fontsize=8.5, color=INK, zorder=6,
    )  # fmt: skip


def _same_places(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Group candidates with the same two accuracies, which share a point and a label."""
    groups: dict[tuple[float, float], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((_no_think(entry), _accuracy(entry, "think")), []).append(entry)
    return list(groups.values())


def line_plot(name: str, title: str, parameter: str, entries: Sequence[Entry]) -> Picture:
    """Plot the scores along the parameter that varies, with 95 % intervals; the best is marked."""
    ordered = sorted(entries, key=lambda entry: float(entry["point"][parameter]))
    values = [float(entry["point"][parameter]) for entry in ordered]

    def draw(axes: Axes) -> None:
        if all(entry["modes"] for entry in ordered):
            for mode in MODES:
                scores = [100 * _accuracy(entry, mode) for entry in ordered]
                reach = _reach(ordered, mode)
                axes.errorbar(values, scores, yerr=reach, linestyle=LINES[mode], **mark(mode))
            axes.set_ylabel("accuracy, %")
        else:
            scores = [entry["value"] for entry in ordered]
            axes.plot(values, scores, marker="o", color=COLORS["think"], label="score")
            axes.set_ylabel("score")
        for entry, value in zip(ordered, values, strict=True):
            if entry["best"]:
                axes.axvline(value, color=COLORS[""], linewidth=1.2, linestyle=":", label="best")
        axes.set_xlabel(label_text(parameter, 30))

    alt = f"{title}: scores by {parameter}"
    return picture(name, alt, draw, title=f"{title}: scores by {parameter}")


def _xy(entries: Sequence[Entry]) -> tuple[list[float], list[float]]:
    return (
        [100 * _no_think(entry) for entry in entries],
        [100 * _accuracy(entry, "think") for entry in entries],
    )


def _no_think(entry: Entry) -> float:
    return _accuracy(entry, "no_think")


def _accuracy(entry: Entry, mode: str) -> float:
    return float(entry["modes"][mode]["accuracy"])


def _reach(entries: Sequence[Entry], mode: str) -> list[list[float]]:
    """Return the length of each interval downwards and upwards, in points."""
    cells = [entry["modes"][mode] for entry in entries]
    down = [100 * max(0.0, cell["accuracy"] - cell["accuracy_ci"][0]) for cell in cells]
    up = [100 * max(0.0, cell["accuracy_ci"][1] - cell["accuracy"]) for cell in cells]
    return [down, up]
