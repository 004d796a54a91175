"""Prepare the rows of a training stage on many machines, started by datatrove.

    pip install 'dualign[datatrove]'
    python with_datatrove.py RECIPE --stage sft --workers 8 --at-once 2             on this machine
    python with_datatrove.py RECIPE --stage sft --workers 64 --slurm cpu --cpus 16  as SLURM jobs

Every worker is `dualign prepare RECIPE --worker K/N`, and `--join N` ends the work: the same shards, key
and account as `dualign prepare RECIPE` in one process, at the place where training looks for them. The
machines need one folder for prepared rows ($DUALIGN_TOKENS), the recipe and its data under the same
paths, and the same versions. datatrove keeps count of what is done: after a failure, start it again.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor

from dualign.api import load_recipe
from dualign.errors import DualignError


class Prepare:
    """A step of a pipeline: part `rank` of `world_size`, or all parts joined."""

    def __init__(self, arguments: list[str], *, join: int = 0) -> None:
        self.arguments, self.join = arguments, join

    def __call__(self, _: Any, rank: int, world_size: int) -> None:
        """Run `dualign prepare`; its own message says what is wrong."""
        part = ["--join", str(self.join)] if self.join else ["--worker", f"{rank}/{world_size}"]
        subprocess.run([sys.executable, "-m", "dualign", *self.arguments, *part], check=True)


def main() -> None:
    """Start the workers, and the one who joins their parts."""
    given, overrides = _parser().parse_known_args()
    try:
        load_recipe(given.recipe, *overrides)
    except DualignError as error:
        sys.exit(f"error: {error}")
    arguments = ["prepare", given.recipe, *overrides]
    if given.stage:
        arguments += ["--stage", given.stage]
    last = None
    # Screening has to see all rows before the first is tokenized; without it the second round has
    # nothing to do.
    for step, join in (("screen", 0), ("tokenize", 0), ("join", given.workers)):
        last = _executor(given, step, Prepare(arguments, join=join), last)
    assert last is not None, "there are three steps"
    try:
        last.run()
    except subprocess.CalledProcessError:
        sys.exit(
            f"a worker failed: its message is above, or in {given.logs}. Then start this again."
        )


def _executor(given: argparse.Namespace, name: str, step: Prepare, depends: Any) -> Any:
    tasks = 1 if step.join else given.workers
    common = {
        "pipeline": [step],
        "tasks": tasks,
        "logging_dir": str(given.logs / name),
        "depends": depends,
    }
    if given.slurm is None:
        return LocalPipelineExecutor(**common, workers=min(given.at_once, tasks))
    return SlurmPipelineExecutor(
        **common,
        job_name=f"dualign-{name}",
        partition=given.slurm,
        time=given.time,
        cpus_per_task=given.cpus,
        mem_per_cpu_gb=given.memory,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("recipe", help="a recipe; KEY=VALUE after it set its keys")
    parser.add_argument("--stage", help="which training stage; default: the first")
    parser.add_argument("--workers", type=int, default=2, help="parts of the work")
    parser.add_argument("--at-once", type=int, default=2, help="workers at once on this machine")
    parser.add_argument(
        "--logs", type=Path, default=Path("prepare-logs"), help="datatrove's folder"
    )
    parser.add_argument("--slurm", metavar="PARTITION", help="submit SLURM jobs to this partition")
    parser.add_argument("--time", default="08:00:00", help="of a SLURM job")
    parser.add_argument("--cpus", type=int, default=8, help="of a SLURM job; set data.num_proc too")
    parser.add_argument("--memory", type=int, default=4, metavar="GB", help="for each CPU")
    return parser


if __name__ == "__main__":
    main()
