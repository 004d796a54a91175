"""The plots of an experiment: a held-out metric by step in each run, and accuracy against its price."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from dualign.data.conversation import MODES
from dualign.report.blocks import Picture
from dualign.report.plots import COLORS, INK, label_text, mark, picture
from dualign.report.sweep_plots import WINNER

Entry = Mapping[str, Any]
_SIZE = (5.2, 4.4)
# Okabe and Ito's colors, which the color-blind can tell apart, without that of the winner.
_COLORS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_DASHES = ("-", "--", ":", "-.")
_MAX_NAMED = 10


def curves_plot(name: str, record: Entry) -> Picture:
    """Plot the held-out metric of each run by step; runs that were stopped end with a cross."""
    entries = [entry for entry in record["runs"] if entry["curve"]]
    styles = [(color, dash) for dash in _DASHES for color in _COLORS]

    def draw(axes: Axes) -> None:
        for entry, (color, dash) in zip(entries, cycle(styles), strict=False):
            steps, values = zip(*entry["curve"], strict=True)
            best = entry["best"]
            label = label_text(f"best: {entry['label']}" if best else entry["label"], 40)
            axes.plot(
                steps, values, color=WINNER if best else color, linestyle="-" if best else dash,
                linewidth=2.4 if best else 1.3, marker=".", zorder=5 if best else 3,
                label=label if best or len(entries) <= _MAX_NAMED else None,
            )  # fmt: skip
            if entry["state"].startswith("stopped"):
                axes.plot(steps[-1:], values[-1:], marker="x", markersize=8, color=color)
        for rung in record["rungs"]:
            axes.axvline(rung, color=COLORS[""], linewidth=0.9, linestyle=":")
        axes.set_xlabel("step")
        axes.set_ylabel(label_text(record["curve"], 34))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))

    title = f"{record['curve']} by step"
    alt = f"{record['name']}: {title}, a line for each run"
    return picture(name, alt, draw, title=title, size=_SIZE, stacked=True)


def relation_plot(name: str, record: Entry, price: str) -> Picture:
    """Plot the accuracy of each run in both modes against its thinking tokens, or its KL."""
    entries = [entry for entry in record["runs"] if entry["modes"]]

    def draw(axes: Axes) -> None:
        for mode in MODES:
            points = [
                (x, entry) for entry in entries if (x := _price(entry, mode, price)) is not None
            ]
            if not points or (price == "thinking tokens" and mode == "no_think"):
                continue
            accuracies = [100 * entry["modes"][mode]["accuracy"] for _, entry in points]
            axes.errorbar(
                [x for x, _ in points], accuracies, yerr=_reach([e for _, e in points], mode),
                linestyle="", **mark(mode),
            )  # fmt: skip
            for (x, entry), accuracy in zip(points, accuracies, strict=True):
                if entry["best"]:
                    axes.annotate(
                        "best", (x, accuracy), xytext=(7, 6), textcoords="offset points",
                        fontsize=8.5, color=INK,
                    )  # fmt: skip
        axes.set_xlabel(
            "thinking tokens" if price != "KL" else f"KL to {record['parent']}, nats a token"
        )
        axes.set_ylabel("accuracy, %")
        axes.margins(0.1)

    title = f"accuracy by {price}"
    return picture(name, f"{record['name']}: {title}", draw, title=title, size=_SIZE)


def _price(entry: Entry, mode: str, price: str) -> float | None:
    if price == "KL":
        return (entry["kl"] or {}).get(mode)
    return float(entry["modes"][mode]["think_tokens"])


def _reach(entries: Sequence[Entry], mode: str) -> list[list[float]]:
    """Return the length of each interval downwards and upwards, in points."""
    cells = [entry["modes"][mode] for entry in entries]
    down = [100 * max(0.0, cell["accuracy"] - cell["accuracy_ci"][0]) for cell in cells]
    up = [100 * max(0.0, cell["accuracy_ci"][1] - cell["accuracy"]) for cell in cells]
    return [down, up]
