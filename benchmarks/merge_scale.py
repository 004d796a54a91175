"""How a merge's cost grows with bytes, models and tensors: a table and a plot."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Run, idle_mb, measure
from benchmarks.merge_inputs import make_inputs

# Name -> x, number of models, sizes of the inputs.
Point = tuple[float, int, dict[str, int]]
AXES: dict[str, list[Point]] = {
    "GB of each of 3 models": [
        (0.14, 3, {"num_hidden_layers": 1}),
        (0.51, 3, {}),
        (1.01, 3, {"num_hidden_layers": 40}),
        (2.01, 3, {"num_hidden_layers": 84}),
    ],
    "models of 0.51 GB": [(2, 2, {}), (4, 4, {}), (8, 8, {})],
    "tensors in 0.51 GB": [
        (164, 3, {}),
        (650, 3, {"hidden_size": 512, "intermediate_size": 1408, "vocab_size": 98304, "num_hidden_layers": 72}),
        (2594, 3, {"hidden_size": 256, "intermediate_size": 704, "vocab_size": 196608, "num_hidden_layers": 288}),
    ],
}  # fmt: skip
TIES = ((0.51, 3), (2.01, 3), (8, 8))
"""The points at which ties is measured too, for its memory."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of one tool at one point."""

    axis: str
    x: float
    tool: str
    run: Run


def scale(work: Path, mergekit: Path, flags: Sequence[str], picture: Path) -> str:
    """Measure every point once, plot, and return the table."""
    idle = idle_mb()
    measurements: list[Measured] = []
    for axis, points in AXES.items():
        for x, count, sizes in points:
            name = "in" if not sizes else "in-" + "-".join(map(str, sizes.values()))
            base, *models = make_inputs(work / name, count, **sizes)
            for tool, command in commands(work, mergekit, flags, base, models[:count]).items():
                if tool == "dualign ties" and (x, count) not in TIES:
                    continue
                shutil.rmtree(work / "out", ignore_errors=True)
                digests = work / "scale-digests.json"
                digests.unlink(missing_ok=True)
                run = measure(command, DUALIGN_DIGESTS=str(digests))
                measurements.append(Measured(axis, x, tool, run))
                print(axis, x, tool, run, file=sys.stderr)
    plot(measurements, idle, picture)
    return "\n".join(
        [
            "",
            "## Growth",
            "",
            "One run each, at the first touch of the files. ![growth](merge.png)",
            "",
            "| | | tool | seconds | CPU seconds | peak, MB |",
            "|---|---|---|---|---|---|",
            *(
                f"| {entry.axis} | {entry.x:g} | {entry.tool} | {entry.run.wall:.1f} | {entry.run.cpu:.1f} | "
                f"{entry.run.anonymous_mb - idle:.0f} |"
                for entry in measurements
            ),
            "",
        ]
    )


def commands(
    work: Path, mergekit: Path, flags: Sequence[str], base: Path, models: Sequence[Path]
) -> dict[str, list[str]]:
    """By tool; linear for both, and ties for ours."""
    each = "".join(f"  - {{model: {model}, parameters: {{weight: 1}}}}\n" for model in models)
    linear, ties = work / "scale.yml", work / "scale-ties.yml"
    linear.write_text(f"merge_method: linear\ndtype: bfloat16\nmodels:\n{each}")
    ties.write_text(
        f"merge_method: ties\nbase_model: {base}\nparameters: {{density: 0.5}}\nmodels:\n{each}"
    )
    ours, out = [sys.executable, "-m", "dualign", "merge"], str(work / "out")
    return {
        "dualign": [*ours, str(linear), out],
        "dualign ties": [*ours, str(ties), out],
        "mergekit": [str(mergekit), str(linear), out, *flags],
    }


def plot(measurements: Sequence[Measured], idle: float, picture: Path) -> None:
    """Seconds and memory, a column for each axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    rows = figure.subplots(2, len(AXES), sharex="col")
    for column, axis in enumerate(AXES):
        for tool, mark in (("dualign", "o-"), ("mergekit", "s--")):
            runs = [entry for entry in measurements if entry.axis == axis and entry.tool == tool]
            places = [entry.x for entry in runs]
            rows[0][column].plot(places, [entry.run.wall for entry in runs], mark, label=tool)
            memory = [entry.run.anonymous_mb - idle for entry in runs]
            rows[1][column].plot(places, memory, mark, label=tool)
        rows[0][column].set_ylim(bottom=0)
        rows[1][column].set_yscale("log")
        rows[1][column].set_xlabel(axis)
        for row in rows:
            row[column].grid(alpha=0.3)
    rows[0][0].set_ylabel("seconds, with sync")
    rows[1][0].set_ylabel("peak of anonymous memory, MB")
    rows[0][0].legend()
    figure.suptitle("A linear merge, from start to disk", fontsize=10)
    figure.savefig(picture, dpi=90)
