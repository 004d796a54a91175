"""The files for SLURM and SkyPilot: what their parsers ask for, and what they start."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

RECIPES = Path(__file__).parents[2] / "recipes"
SBATCH = RECIPES / "slurm" / "run.sbatch"
SKYPILOT = RECIPES / "skypilot" / "run.yaml"


def directives() -> dict[str, str]:
    """The options that sbatch reads: up to the first command."""
    options = {}
    for line in SBATCH.read_text().splitlines():
        if not line.startswith("#") and line.strip():
            break
        if match := re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line):
            options[match[1]] = match[2] or ""
        else:
            assert not line.startswith("#SBATCH"), line
    return options


def test_srun_starts_one_process_on_each_of_two_nodes() -> None:
    options = directives()
    assert options["nodes"] == "2" and options["gpus-per-node"] == "8"
    assert options["ntasks-per-node"] == "1", "dualign starts the ranks itself"
    assert SBATCH.read_text().count("#SBATCH") == len(options), "one was below the first command"


def test_the_job_hands_its_arguments_to_every_node(tmp_path: Path) -> None:
    """`srun` is a script that says what it was given."""
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$MASTER_PORT" "$@"\n')
    srun.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "1234567",
    }

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(SBATCH), *arguments],
            env=environment | more,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    environment.pop("MASTER_PORT", None)
    started = ["--kill-on-bad-exit=1", "dualign", "run", "a recipe.yaml", "seed=3"]
    assert run("a recipe.yaml", "seed=3").stdout.splitlines() == ["24567", *started]
    assert run("a recipe.yaml", "seed=3", MASTER_PORT="7").stdout.splitlines() == ["7", *started]
    refused = run()
    assert refused.returncode and "usage: sbatch run.sbatch RECIPE" in refused.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck isn't installed")
def test_shellcheck_has_nothing_to_say() -> None:
    command = ["shellcheck", str(SBATCH)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.stdout


def test_skypilot_runs_a_recipe_that_ships_on_two_machines() -> None:
    """`sky.Task.from_yaml` of SkyPilot 0.14 takes the file as well (docs/distributed.md)."""
    task = yaml.safe_load(SKYPILOT.read_text())
    known = {"name", "resources", "num_nodes", "workdir", "volumes", "envs", "setup", "run"}
    assert task.keys() == known
    assert task["num_nodes"] == 2 and task["resources"]["accelerators"].endswith(":8")
    assert (RECIPES.parent / task["envs"]["RECIPE"]).is_file()
    (shared,) = task["volumes"]
    assert all(task["envs"][name].startswith(shared) for name in ("OUTPUT_DIR", "HF_HOME"))
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert set(re.findall(r"\$(\w+)", task["run"])) <= task["envs"].keys()
