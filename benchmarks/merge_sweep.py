"""A sweep of 8 weights against 8 runs of mergekit, on the same checkpoints.

    python -m benchmarks.merge_sweep WORK [--runs 3]

Three tools in turn, each with its whole process and what it imports:
  live      one process: 8 candidates computed and set into one model in memory, as `dualign sweep` does before it asks
            the tasks. Nothing is written.
  written   8 runs of `dualign merge`: 8 folders with hashes, merge.json, card.
  mergekit  8 runs of mergekit-yaml: 8 folders.
The checkpoints and mergekit's environment are those of benchmarks/merge.py. Writes
benchmarks/merge_sweep.md.
"""

import argparse
import gc
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.merge import FAIR, Run, install_mergekit, interleaved
from benchmarks.merge_inputs import make_inputs

HERE = Path(__file__).parent
# The shares of the first two models together; the third has the rest.
POINTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def main() -> None:
    """Measure, and write the table; with --inside only the live sweep, in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", help="of the model in memory")
    parser.add_argument("--inside", action="store_true", help="the live sweep alone")
    args = parser.parse_args()
    models = make_inputs(args.work / "in", 3)[1:]
    if args.inside:
        live_sweep(models, args.work / "live", args.dtype)
        return
    theirs = install_mergekit(args.work / "mergekit")
    case = commands(args.work, models, theirs)
    measured = interleaved(case, args.runs, args.work)
    text = report(measured, args.runs)
    (HERE / "merge_sweep.md").write_text(text, encoding="utf-8")
    print(text)


def live_sweep(models: Sequence[Path], folder: Path, dtype: str) -> None:
    """8 candidates into one model; prints how long each took."""
    from dualign.merging.merge import prepare, write_beside
    from dualign.merging.sweep.live import LiveModel
    from dualign.merging.sweep.points import merge_at

    gc.set_threshold(50_000)  # as the command line does
    clock = time.perf_counter()
    merges = [
        prepare(merge_at(recipe(models, "$half", "$rest"), shares(point), "s"), seed=0)
        for point in POINTS
    ]
    folder.mkdir(exist_ok=True)
    write_beside(merges[0], folder)
    live = LiveModel(folder, dtype=dtype)
    print(f"model in memory: {time.perf_counter() - clock:.2f} s")
    for number, merge in enumerate(merges):
        clock = time.perf_counter()
        live.apply(merge.weights, dtype=merge.merge.dtype)
        print(f"{POINTS[number]}: {time.perf_counter() - clock:.2f} s")


def recipe(models: Sequence[Path], half: object, rest: object) -> dict[str, object]:
    """mergekit's form, which both read: weights that add up to 1."""
    weights = (half, half, rest)
    return {
        "merge_method": "linear",
        "dtype": "bfloat16",
        "models": [
            {"model": str(model), "parameters": {"weight": weight}}
            for model, weight in zip(models, weights, strict=True)
        ],
    }


def shares(point: float) -> dict[str, float]:
    """The weights at a point."""
    return {"half": point / 2, "rest": round(1 - point, 12)}


def commands(work: Path, models: Sequence[Path], theirs: Path) -> dict[str, list[str]]:
    """One command for each tool; OUT stands for the folder that is written."""
    files = []
    for point in POINTS:
        file = work / f"a-{point}.yml"
        # JSON is YAML.
        file.write_text(json.dumps(recipe(models, *shares(point).values())))
        files.append(file)
    yaml = str(theirs.parent / "mergekit-yaml")
    here = [sys.executable, "-m", "benchmarks.merge_sweep", str(work)]
    return {
        "live": [*here, "--inside"],
        "written": _in_turn([sys.executable, "-m", "dualign", "merge"], files, []),
        "mergekit": _in_turn([yaml], files, FAIR),
    }


def _in_turn(tool: Sequence[str], files: Sequence[Path], flags: Sequence[str]) -> list[str]:
    lines = [shlex.join([*tool, str(file), f"OUT/{file.stem}", *flags]) for file in files]
    return ["sh", "-c", " && ".join(["mkdir -p OUT", *lines])]


def report(measured: dict[str, list[Run]], runs: int) -> str:
    """The table, with what it was measured on."""
    theirs = _middle(measured["mergekit"], lambda run: run.wall)
    theirs_cpu = _middle(measured["mergekit"], lambda run: run.cpu)
    lines = [
        "# A sweep of 8 weights, measured",
        "",
        "linear of 3 checkpoints of 507 MB (SmolLM3-shaped, bfloat16), 8 points, warm page cache, whole processes with "
        f"their imports, `sync` included, interleaved, median of {runs}. "
        f"`python -m benchmarks.merge_sweep WORK --runs {runs}`",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end, python "
        f"{platform.python_version()}; mergekit 0.1.5. The model in memory is bfloat16, as it is written (`--inside --dtype "
        "float32` measures the other).",
        "",
        "| 8 candidates | seconds | CPU seconds | ratio of seconds | of CPU |",
        "|---|---|---|---|---|",
    ]
    words = {
        "live": "dualign, set into a live model",
        "written": "dualign, 8 folders written",
        "mergekit": "mergekit, 8 folders written",
    }
    for tool, runs_of_tool in measured.items():
        wall, cpu = (
            _middle(runs_of_tool, lambda run: run.wall),
            _middle(runs_of_tool, lambda run: run.cpu),
        )
        lines.append(
            f"| {words[tool]} | {wall:.1f} | {cpu:.1f} | {wall / theirs:.2f} | {cpu / theirs_cpu:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _middle(runs: Sequence[Run], value: Callable[[Run], float]) -> float:
    return statistics.median(map(value, runs))


if __name__ == "__main__":
    main()
