"""Rows per second of preparing with `data.num_proc`: one process on one core, one with all cores, several.

    python -m benchmarks.prepare_processes                          20,000 conversations, three turns each
    python -m benchmarks.prepare_processes --processes 2 4 8 16     on more cores

The sides take turns, each in a process of its own, from the same JSONL file to packed rows. One process
with all cores renders rows while a second thread tokenizes, so it takes more than one core.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.data_path import MAX_TOKENS, conversations, environment


def main() -> None:
    """Measure, or be one of the processes measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    parser.add_argument("--file", type=Path, help="be measured on this file")
    parser.add_argument("--cores", type=int, default=0, help="with --file: so many; 0: all")
    given = parser.parse_args()
    if given.file:
        print(json.dumps(measure(given.file, given.processes[0], given.cores)))
        return
    print(json.dumps({name: version(name) for name in ("transformers", "datasets", "tokenizers")}))
    sides = [(1, 1), (1, 0), *((count, 0) for count in given.processes)]
    results: dict[tuple[int, int], list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        path = conversations(Path(folder), given.rows)
        for _ in range(given.runs):
            for side in sides:
                results[side].append(run_alone(path, *side))
                print(side, json.dumps(results[side][-1]), flush=True)
    assert len({run["sha256"] for runs in results.values() for run in runs}) == 1, "other rows"
    show(results)


def run_alone(path: Path, processes: int, cores: int) -> dict[str, Any]:
    """Return the measurement of a process of its own, with a cache of its own."""
    with tempfile.TemporaryDirectory() as cache:
        options = ["--file", str(path), "--processes", str(processes), "--cores", str(cores)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.prepare_processes", *options],
            env={
                **environment(),
                "HF_DATASETS_CACHE": cache,
                "TOKENIZERS_PARALLELISM": "false",
                "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            },
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(path: Path, processes: int, cores: int) -> dict[str, Any]:
    """Return seconds from the file to the packed rows, imports and tokenizer not counted."""
    if cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    from transformers import AutoTokenizer

    from dualign.checkpoints.embedded import embedded_model
    from dualign.data.config import DataConfig, SourceConfig
    from dualign.data.prepare import DataRequest, prepare_sft
    from dualign.data.text.template import load_template

    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    template = load_template("dualign", tokenizer=tokenizer)
    sources = (SourceConfig(path=str(path)),)
    data = DataConfig(sources=sources, max_tokens=MAX_TOKENS, cache=False, num_proc=processes)
    wall, own, children = clocks()
    made = prepare_sft(DataRequest(data, tokenizer, template, seed=0))
    seconds, here, there = (
        end - start for end, start in zip(clocks(), (wall, own, children), strict=True)
    )
    rows = made.rows["examples"]
    return {
        "rows_per_second": round(rows / seconds),
        "seconds": round(seconds, 2),
        "cpu_of_parent": round(here, 2),
        "cpu_of_children": round(there, 2),
        "cpu_us_per_row": round((here + there) / rows * 1e6),
        "load": round(os.getloadavg()[0], 1),
        "sha256": sha256(json.dumps(made.train[:100]).encode()).hexdigest()[:12],
    }


def clocks() -> tuple[float, float, float]:
    """Return seconds of wall, and of CPU of this process and of its children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), time.process_time(), children.ru_utime + children.ru_stime


def show(results: dict[tuple[int, int], list[dict[str, Any]]]) -> None:
    """Print medians, and how much faster each side is than one process on one core."""
    base, *_ = results.values()
    for (processes, cores), runs in results.items():
        rate = statistics.median(run["rows_per_second"] for run in runs)
        used = min(run["cpu_us_per_row"] for run in runs)
        turns = [
            run["rows_per_second"] / first["rows_per_second"]
            for run, first in zip(runs, base, strict=True)
        ]
        print(
            f"{processes} processes on {cores or 'all'} cores: median {rate:,.0f} rows/s, "
            f"{statistics.median(turns):.2f}x of one core ({', '.join(f'{x:.2f}' for x in turns)}), "
            f"at least {used:,} us of CPU a row"
        )


if __name__ == "__main__":
    main()
