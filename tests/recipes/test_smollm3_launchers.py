"""SFT and APO through the launcher configs, two processes on the CPU against one with the same batch."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dualign.cli.main import main
from tests import processes

RECIPES = Path(__file__).parents[2] / "recipes"
COMMANDS = {"sft": ("sft", "SFT"), "apo": ("prefer", "Preference")}


@pytest.fixture(scope="module")
def finish(
    small_overrides: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Run a stage recipe through a launcher (None: in this process) and give its run directory."""

    def run(stage: str, launcher: str | None, model: Path | None = None) -> Path:
        command, config = COMMANDS[stage]
        overrides = small_overrides(config, model=model)
        overrides.append(f"train.gradient_accumulation_steps={1 if launcher else 2}")
        arguments = [command, str(RECIPES / "smollm3" / f"{stage}.yaml"), *overrides]
        if launcher:
            config_file = processes.on_cpu(launcher, tmp_path_factory.mktemp("launcher"))
            start = [sys.executable, "-m", "accelerate.commands.launch"]
            start += ["--config_file", str(config_file), "-m", "dualign", *arguments]
            environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
            processes.finish(processes.start(start, env=environment, cwd=RECIPES.parent))
        else:
            assert main(arguments) == 0
        return Path(overrides[0].removeprefix("output_dir=")) / stage

    return run


@pytest.fixture(scope="module")
def alone(finish: Callable[..., Path]) -> Callable[[str], Path]:
    """The same stage in one process; APO starts from that SFT."""
    made: dict[str, Path] = {}

    def run(stage: str) -> Path:
        if stage not in made:
            made[stage] = finish(stage, None, run("sft") if stage == "apo" else None)
        return made[stage]

    return run


def losses(folder: Path) -> list[float]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


@pytest.mark.slow  # tests/training/test_many_processes.py runs the same launcher configs
@pytest.mark.usefixtures("deepspeed")
@pytest.mark.parametrize("launcher", ["fsdp2", "zero2", "zero3"])
@pytest.mark.parametrize("stage", ["sft", "apo"])
def test_two_processes_train_what_one_does(
    launcher: str, stage: str, finish: Callable[..., Path], alone: Callable[[str], Path]
) -> None:
    expected = alone(stage)
    model = alone("sft") if stage == "apo" else None
    found = finish(stage, launcher, model)
    assert losses(found) == pytest.approx(losses(expected), abs=1e-4)
    weights, others = (load_file(folder / "model.safetensors") for folder in (found, expected))
    assert weights.keys() == others.keys()
    assert max(float((weights[name] - others[name]).abs().max()) for name in weights) < 1e-6
