"""The plots of a sweep: think against no_think with the front, and the scores along one parameter."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from dualign.data.conversation import MODES
from dualign.report.blocks import Picture
from dualign.report.plots import COLOURS, INK, LINES, label_text, mark, picture

Entry = Mapping[str, Any]
FRONT, WINNER = "#0072B2", "#D55E00"
SIZE = (5.2, 4.4)
LABELLED = 8  # more names than that would lie on top of each other


def pareto_plot(name: str, title: str, entries: Sequence[Entry]) -> Picture:
    """Each candidate's accuracy in think (up) and no_think (right), with 95 % intervals; the front is joined."""

    def draw(axes: Axes) -> None:
        behind = [one for one in entries if not one["front"]]
        front = sorted((one for one in entries if one["front"]), key=_no_think)
        _points(axes, behind, COLOURS[""], "other candidates", filled=False)
        _points(axes, front, FRONT, "front: nothing better in both", filled=True)
        if len(front) > 1:
            xs, ys = _xy(front)
            axes.plot(xs, ys, color=FRONT, linewidth=1.2, linestyle=":", drawstyle="steps-post")
        best = [one for one in entries if one["best"]]
        for one in best:
            x, y = _xy([one])
            axes.plot(
                x, y, marker="o", markersize=14, markerfacecolor="none",
                markeredgecolor=WINNER, markeredgewidth=2.0, linestyle="",
                label=label_text(f"best: {one['label']}", 40), zorder=5,
            )  # fmt: skip
        for group in _same_places(front[:LABELLED]):
            _name(axes, group)
        axes.set_xlabel("no_think accuracy, %")
        axes.set_ylabel("think accuracy, %")
        axes.margins(0.08)

    alt = f"{title}: think accuracy against no_think accuracy of each candidate"
    return picture(name, alt, draw, title=f"{title}: both modes", size=SIZE, stacked=True)


def _points(axes: Axes, entries: Sequence[Entry], colour: str, label: str, *, filled: bool) -> None:
    if not entries:
        return
    xs, ys = _xy(entries)
    across, up = (_reach(entries, mode) for mode in ("no_think", "think"))
    axes.errorbar(
        xs, ys, xerr=across, yerr=up, linestyle="", color=colour, ecolor=colour,
        elinewidth=1.1, capsize=2.5, alpha=0.4,
    )  # fmt: skip
    axes.plot(
        xs, ys, marker="o", markersize=6.5, linestyle="", color=colour, label=label,
        markerfacecolor=colour if filled else "none", markeredgewidth=1.4, zorder=4,
    )  # fmt: skip


def _name(axes: Axes, group: Sequence[Entry]) -> None:
    (x,), (y,) = _xy(group[:1])
    axes.annotate(
        label_text("; ".join(one["label"] for one in group), 34),
        (x, y), xytext=(7, 6), textcoords="offset points", fontsize=8.5, color=INK, zorder=6,
    )  # fmt: skip


def _same_places(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Candidates with the same two accuracies share a point, and so a label."""
    groups: dict[tuple[float, float], list[Entry]] = {}
    for one in entries:
        groups.setdefault((_no_think(one), _accuracy(one, "think")), []).append(one)
    return list(groups.values())


def line_plot(name: str, title: str, parameter: str, entries: Sequence[Entry]) -> Picture:
    """The scores along the one parameter that varies, with 95 % intervals; the best value is marked."""
    ordered = sorted(entries, key=lambda one: float(one["point"][parameter]))
    values = [float(one["point"][parameter]) for one in ordered]

    def draw(axes: Axes) -> None:
        if all(one["modes"] for one in ordered):
            for mode in MODES:
                scores = [100 * _accuracy(one, mode) for one in ordered]
                reach = _reach(ordered, mode)
                axes.errorbar(values, scores, yerr=reach, linestyle=LINES[mode], **mark(mode))
            axes.set_ylabel("accuracy, %")
        else:
            scores = [one["value"] for one in ordered]
            axes.plot(values, scores, marker="o", color=COLOURS["think"], label="score")
            axes.set_ylabel("score")
        for one in ordered:
            if one["best"]:
                where = float(one["point"][parameter])
                axes.axvline(where, color=COLOURS[""], linewidth=1.2, linestyle=":", label="best")
        axes.set_xlabel(label_text(parameter, 30))

    alt = f"{title}: scores by {parameter}"
    return picture(name, alt, draw, title=f"{title}: scores by {parameter}")


def _xy(entries: Sequence[Entry]) -> tuple[list[float], list[float]]:
    return (
        [100 * _no_think(one) for one in entries],
        [100 * _accuracy(one, "think") for one in entries],
    )


def _no_think(entry: Entry) -> float:
    return _accuracy(entry, "no_think")


def _accuracy(entry: Entry, mode: str) -> float:
    return float(entry["modes"][mode]["accuracy"])


def _reach(entries: Sequence[Entry], mode: str) -> list[list[float]]:
    """How far each interval reaches down and up, in points."""
    cells = [one["modes"][mode] for one in entries]
    down = [100 * max(0.0, cell["accuracy"] - cell["accuracy_ci"][0]) for cell in cells]
    up = [100 * max(0.0, cell["accuracy_ci"][1] - cell["accuracy"]) for cell in cells]
    return [down, up]
