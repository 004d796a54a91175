"""Pictures of merges."""

from collections.abc import Sequence
from pathlib import Path

from dualign.merging.diff import Distance


def plot_distances(found: Sequence[Distance], file: Path, *, title: str) -> None:
    """Relative distances as bars, one for each line of `dualign diff`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.5 + 0.22 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh([one.name for one in found], [one.relative for one in found])
    axes.invert_yaxis()
    axes.set_xlabel("|a - b| / |a|")
    axes.set_title(title, fontsize=9)
    figure.savefig(file)
