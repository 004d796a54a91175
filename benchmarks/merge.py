"""Merging against mergekit on the same checkpoints: time, CPU, anonymous memory.

    python -m benchmarks.merge WORK [--runs 5] [--only linear,ties]

Makes 3 checkpoints of 507 MB in WORK, and an environment of its own with mergekit, pinned. Runs are
interleaved, one to warm up, the median of the rest is shown; `sync` is part of the time of both.
Writes benchmarks/merge.md.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.merge_inputs import make_inputs

MERGEKIT = "mergekit==0.1.5"
HERE = Path(__file__).parent
FAIR = ["--no-copy-tokenizer", "--no-write-model-card", "--quiet", "-j", "2"]
SMALL = ["--out-shard-size", "100M", "--async-write"]


@dataclass(frozen=True, slots=True)
class Run:
    """What one process took."""

    wall: float
    cpu: float
    anonymous_mb: float
    inside: float | None = None
    """seconds that the process measured itself, without imports"""


def main() -> None:
    """Measure the cases, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="", help="cases, separated by commas")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    theirs = install_mergekit(given.work / "mergekit")
    models = make_inputs(given.work / "in", 3)
    cases = make_cases(given.work, models, theirs)
    if given.only:
        cases = {name: cases[name] for name in given.only.split(",")}
    measured = {name: interleaved(one, given.runs, given.work) for name, one in cases.items()}
    text = report(measured, theirs, given.runs)
    (HERE / "merge.md").write_text(text, encoding="utf-8")
    (given.work / "merge.json").write_text(json.dumps(measured, default=str, indent=2))
    print(text)


def install_mergekit(folder: Path) -> Path:
    """The python of an environment that has nothing but mergekit."""
    python = folder / "bin" / "python"
    if not (folder / ".ready").is_file():
        venv.create(folder, with_pip=True)
        torch = ["--index-url", "https://download.pytorch.org/whl/cpu", "torch"]
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        if subprocess.run([*pip, *torch], check=False).returncode:
            subprocess.run([*pip, "torch"], check=True)
        subprocess.run([*pip, MERGEKIT], check=True)
        (folder / ".ready").touch()
    return python


Case = dict[str, list[str]]


def make_cases(work: Path, models: Sequence[Path], theirs: Path) -> dict[str, Case]:
    """For each case the commands by tool; OUT stands for the folder that is written."""
    base, *tuned = models
    configs = write_configs(work, base, tuned)
    yaml = str(theirs.parent / "mergekit-yaml")
    multi = str(theirs.parent / "mergekit-multi")
    ours = [sys.executable, "-m", "dualign", "merge"]
    inside = str(HERE / "merge_inside.py")
    linear, ties = str(configs["linear"]), str(configs["ties"])
    return {
        "linear": {
            "dualign": [*ours, linear, "OUT"],
            "mergekit": [yaml, linear, "OUT", *FAIR],
        },
        "linear with mergekit's best flags": {
            "dualign": [*ours, linear, "OUT"],
            "mergekit": [yaml, linear, "OUT", *FAIR, *SMALL],
        },
        "linear in process": {
            "dualign": [sys.executable, inside, "dualign", linear, "OUT"],
            "mergekit": [str(theirs), inside, "mergekit", linear, "OUT"],
        },
        "linear against the floor": {
            "dualign": [sys.executable, inside, "engine", linear, "OUT"],
            "floor": [sys.executable, inside, "floor", linear, "OUT"],
        },
        "ties": {"dualign": [*ours, ties, "OUT"], "mergekit": [yaml, ties, "OUT", *FAIR]},
        "soup and 0.9/0.1": {
            "dualign": [*ours, str(configs["fused"]), "OUT"],
            "mergekit": [
                multi, str(configs["multi"]), "--out-path", "OUT", "-I", "OUT.between", *FAIR,
            ],
        },
    }  # fmt: skip


def write_configs(work: Path, base: Path, tuned: Sequence[Path]) -> dict[str, Path]:
    """mergekit's YAML, read by both."""
    each = "".join(f"  - {{model: {one}, parameters: {{weight: 1}}}}\n" for one in tuned)
    dense = each.replace("weight: 1", "weight: 1, density: 0.5")
    linear = f"merge_method: linear\ndtype: bfloat16\nmodels:\n{each}"
    second = (
        "merge_method: linear\ndtype: bfloat16\nmodels:\n"
        "  - {model: soup, parameters: {weight: 0.9}}\n"
        f"  - {{model: {base}, parameters: {{weight: 0.1}}}}\n"
    )
    texts = {
        "linear": linear,
        "ties": f"merge_method: ties\nbase_model: {base}\ndtype: bfloat16\nmodels:\n{dense}",
        "fused": f"name: soup\n{linear}---\n{second}",
        "multi": f"name: soup\n{linear}---\n{second}",
    }
    found = {}
    for name, text in texts.items():
        found[name] = work / f"{name}.yml"
        found[name].write_text(text)
    return found


def interleaved(case: Case, runs: int, work: Path) -> dict[str, list[Run]]:
    """Each tool in turn, `runs` times after one that isn't counted (but for a single run)."""
    found: dict[str, list[Run]] = {tool: [] for tool in case}
    for number in range(runs + 1 if runs > 1 else 1):
        for tool, command in case.items():
            out = work / "out"
            for stale in (out, work / "out.between"):
                shutil.rmtree(stale, ignore_errors=True)
            one = measure([part.replace("OUT", str(out)) for part in command])
            if number or runs == 1:
                found[tool].append(one)
            print(f"{' '.join(command[:3])[:60]:60} {one}", file=sys.stderr)
    return found


def measure(command: Sequence[str]) -> Run:
    """Run it, then `sync`; sample its anonymous memory every 10 ms."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    before = os.times()
    clock = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    status = Path(f"/proc/{process.pid}/status")
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, anonymous_mb(status))
        time.sleep(0.01)
    assert process.stdout is not None
    said = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    os.sync()
    after = os.times()
    cpu = sum(after[2:4]) - sum(before[2:4])
    inside = [float(line.split()[1]) for line in said.splitlines() if line.startswith("seconds ")]
    return Run(time.monotonic() - clock, cpu, peak, inside[0] if inside else None)


def anonymous_mb(status: Path) -> float:
    """RssAnon of a process; 0 when it has ended."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)


def report(measured: dict[str, dict[str, list[Run]]], theirs: Path, runs: int) -> str:
    """The table, with what it was measured on."""
    freeze = subprocess.run(
        [str(theirs), "-m", "pip", "freeze"], capture_output=True, text=True, check=True
    ).stdout.split()
    pinned = [one for one in freeze if one.split("==")[0] in ("mergekit", "torch", "safetensors", "transformers")]  # fmt: skip
    load = os.getloadavg()[0]
    lines = [
        "# Merging, measured",
        "",
        "3 checkpoints of 507 MB (SmolLM3-shaped, bfloat16), warm page cache, interleaved runs, median "
        f"of {runs}. `python -m benchmarks.merge WORK --runs {runs}`",
        "",
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load:.1f} at the end, "
        f"python {platform.python_version()}; {', '.join(pinned)}",
        "",
        "| case | tool | seconds | CPU seconds | anonymous peak, MB | ratio of seconds | of CPU |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, tools in measured.items():
        (ours, mine), (other, other_runs) = tools.items()
        a, b = summary(mine), summary(other_runs)
        ratios = f"{a[0] / b[0]:.2f} | {a[1] / b[1]:.2f}"
        lines.append(f"| {case} | {ours} | {a[0]:.2f} | {a[1]:.2f} | {a[2]:.0f} | {ratios} |")
        lines.append(f"| | {other} | {b[0]:.2f} | {b[1]:.2f} | {b[2]:.0f} | | |")
    return "\n".join(lines) + "\n"


def summary(runs: Sequence[Run]) -> tuple[float, float, float]:
    """Median seconds (those measured inside, where they are), CPU seconds, and memory."""

    def middle(value: Callable[[Run], float]) -> float:
        return statistics.median(map(value, runs))

    return (
        middle(lambda one: one.wall if one.inside is None else one.inside),
        middle(lambda one: one.cpu),
        middle(lambda one: one.anonymous_mb),
    )


if __name__ == "__main__":
    main()
