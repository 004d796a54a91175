"""Merging against mergekit on the same checkpoints: time, CPU, anonymous memory, and how they grow.

    python -m benchmarks.merge WORK [--runs 5] [--only linear,ties] [--scale-only | --no-scale]

Makes checkpoints of 507 MB in WORK, and an environment of its own with mergekit, pinned. Runs are
interleaved, one to warm up, the median of the rest is shown; `sync` is part of the time of all.
Writes benchmarks/merge.md and merge.png (about 15 minutes on two free cores, 5 of them for the
growth; 25 GB of disk); with --only or --runs below 5 it only prints.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Run, idle_mb, measure
from benchmarks.merge_inputs import make_inputs
from benchmarks.merge_scale import scale

MERGEKIT = "mergekit==0.1.5"
TORCH = "torch==2.13.0"
HERE = Path(__file__).parent
FAIR = ["--no-copy-tokenizer", "--no-write-model-card", "--quiet", "-j", "2"]
OURS = [sys.executable, "-m", "dualign", "merge"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Two commands in which OUT stands for the folder that is written, and the bar for their ratio."""

    bar: float
    ours: list[str]
    other: tuple[str, list[str]]
    remembers: bool = False
    """whether hashes of the inputs are known from the run before"""


def main() -> None:
    """Measure the cases, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="", help="cases, separated by commas")
    parser.add_argument("--scale-only", action="store_true", help="only how cost grows")
    parser.add_argument("--no-scale", action="store_true", help="leave out how cost grows")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    mergekit = install_mergekit(args.work / "mergekit")
    text = heading(mergekit, args.runs)
    if not args.scale_only:
        text += table(args.work, mergekit, args.runs, args.only)
    if not args.no_scale and not args.only:
        text += scale(args.work, mergekit.parent / "mergekit-yaml", FAIR, HERE / "merge.png")
    if args.runs >= 5 and not (args.only or args.scale_only or args.no_scale):
        (HERE / "merge.md").write_text(text, encoding="utf-8")
    print(text)


def install_mergekit(folder: Path) -> Path:
    """The python of an environment that has nothing but mergekit."""
    python = folder / "bin" / "python"
    if not (folder / ".ready").is_file():
        venv.create(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        cpu = ["--index-url", "https://download.pytorch.org/whl/cpu"]
        if subprocess.run([*pip, *cpu, TORCH], check=False).returncode:
            subprocess.run([*pip, TORCH], check=True)
        subprocess.run([*pip, MERGEKIT], check=True)
        (folder / ".ready").touch()
    return python


def make_cases(work: Path, models: Sequence[Path], mergekit: Path) -> dict[str, Case]:
    """What is compared, by name."""
    base, *tuned = models
    configs = write_configs(work, base, tuned)
    kit, multi = str(mergekit.parent / "mergekit-yaml"), str(mergekit.parent / "mergekit-multi")
    inside = str(HERE / "merge_inside.py")
    linear, ties = configs["linear"], configs["ties"]
    many = [multi, configs["multi"], "--out-path", "OUT", "-I", "OUT.between", *FAIR]
    ours_inside = [sys.executable, inside, "dualign", linear, "OUT"]
    floor = ("floor", [sys.executable, inside, "floor", linear, "OUT"])
    return {
        "linear": Case(
            bar=0.25, ours=[*OURS, linear, "OUT"], other=("mergekit", [kit, linear, "OUT", *FAIR])
        ),
        "linear again": Case(
            bar=0.25,
            ours=[*OURS, linear, "OUT"],
            other=("mergekit", [kit, linear, "OUT", *FAIR]),
            remembers=True,
        ),
        "linear in process": Case(
            bar=0.6,
            ours=ours_inside,
            other=("mergekit", [str(mergekit), inside, "mergekit", linear, "OUT"]),
        ),
        "linear against the floor": Case(bar=2, ours=ours_inside, other=floor),
        "linear again against the floor": Case(
            bar=2, ours=ours_inside, other=floor, remembers=True
        ),
        "ties": Case(
            bar=0.3, ours=[*OURS, ties, "OUT"], other=("mergekit", [kit, ties, "OUT", *FAIR])
        ),
        "soup and 0.9/0.1": Case(
            bar=0.15, ours=[*OURS, configs["multi"], "OUT"], other=("mergekit-multi", many)
        ),
    }


def write_configs(work: Path, base: Path, tuned: Sequence[Path]) -> dict[str, str]:
    """mergekit's YAML, read by both."""
    each = "".join(f"  - {{model: {item}, parameters: {{weight: 1}}}}\n" for item in tuned)
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
        "multi": f"name: soup\n{linear}---\n{second}",
    }
    for name, text in texts.items():
        (work / f"{name}.yml").write_text(text)
    return {name: str(work / f"{name}.yml") for name in texts}


def table(work: Path, mergekit: Path, runs: int, only: str) -> str:
    """Every case measured."""
    cases = make_cases(work, make_inputs(work / "in", 3), mergekit)
    if only:
        cases = {name: case for name, case in cases.items() if name in only.split(",")}
    idle = idle_mb()
    lines = [
        "| case | tool | seconds | CPU seconds | peak, MB | seconds, ratio | CPU, ratio | bar |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, case in cases.items():
        both = {"dualign": case.ours, case.other[0]: case.other[1]}
        measured = interleaved(both, runs, work, remembers=case.remembers)
        mine, other = (summary(entry, idle) for entry in measured.values())
        ratios = f"**{mine[0] / other[0]:.2f}** | {mine[1] / other[1]:.2f} | {case.bar}"
        for tool, item, end in ((f"{name} | dualign", mine, ratios), (f"| {case.other[0]}", other, "| |")):  # fmt: skip
            lines.append(f"| {tool} | {item[0]:.2f} | {item[1]:.2f} | {item[2]:.0f} | {end} |")
    return "\n".join(lines) + "\n"


def interleaved(
    commands: Mapping[str, list[str]], runs: int, work: Path, *, remembers: bool = False
) -> dict[str, list[Run]]:
    """Each command in turn, `runs` times after one that isn't counted (but for a single run)."""
    measured: dict[str, list[Run]] = {name: [] for name in commands}
    out, known = work / "out", work / "digests.json"
    known.unlink(missing_ok=True)
    for number in range(runs + 1 if runs > 1 else 1):
        for name, command in commands.items():
            for stale in (out, work / "out.between"):
                shutil.rmtree(stale, ignore_errors=True)
            if not remembers:
                known.unlink(missing_ok=True)
            command = [part.replace("OUT", str(out)) for part in command]
            run = measure(command, DUALIGN_DIGESTS=str(known))
            if number or runs == 1:
                measured[name].append(run)
            print(f"{name:20} {run}", file=sys.stderr)
    return measured


def summary(runs: Sequence[Run], idle: float) -> tuple[float, float, float]:
    """Median seconds (those measured inside, where they are), CPU seconds, memory above idle."""

    def middle(value: Callable[[Run], float]) -> float:
        return statistics.median(map(value, runs))

    return (
        middle(lambda run: run.wall if run.inside is None else run.inside),
        middle(lambda run: run.cpu),
        middle(lambda run: run.anonymous_mb) - idle,
    )


def heading(mergekit: Path, runs: int) -> str:
    """What was measured, on what."""
    freeze = subprocess.run(
        [str(mergekit), "-m", "pip", "freeze"], capture_output=True, text=True, check=True
    ).stdout.split()
    named = ("mergekit", "torch", "safetensors", "transformers")
    pinned = [line for line in freeze if line.split("==")[0] in named]
    return "\n".join(
        [
            "# Merging, measured",
            "",
            f"3 checkpoints of 507 MB (SmolLM3-shaped, bfloat16), warm page cache, interleaved runs, median of {runs} after one to warm up; `sync` is part of the time.",
            "Peak is anonymous memory above an idle interpreter. dualign hashes every input and output and computes tensors again; in `again` it remembers those of the",
            "inputs. In process: without start and imports, and mergekit with the flags that suit it best. The floor reads the same bytes in blocks of 64 KB and writes as many, with two threads and nothing done to them; it",
            "hashes nothing. `make bench-merge` writes this page anew.",
            "",
            f"{platform.machine()}, {cpu_model()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start, python {platform.python_version()}; "
            + ", ".join(pinned),
            "",
            "",
        ]
    )  # fmt: skip


def cpu_model() -> str:
    """As Linux calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
