"""SFT and APO through the launcher configs, two processes on the CPU against one with the same batch."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

RECIPES = Path(__file__).parents[2] / "recipes"
COMMANDS = {"sft": ("sft", "SFT"), "apo": ("prefer", "Preference")}
LIMIT_SECONDS = 600  # a launch that takes longer hangs


@pytest.fixture(scope="module")
def finish(
    small_overrides: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Run a stage recipe through a launcher (None: one process) and give its run directory."""

    def run(stage: str, launcher: str | None, model: Path | None = None) -> Path:
        command, config = COMMANDS[stage]
        processes = 2 if launcher else 1
        overrides = small_overrides(config, model=model)
        overrides.append(f"train.gradient_accumulation_steps={2 // processes}")
        start = [sys.executable]
        if launcher:
            start = [*start, "-m", "accelerate.commands.launch", "--config_file"]
            start.append(str(on_cpu(launcher, tmp_path_factory.mktemp("launcher"))))
        recipe = str(RECIPES / "smollm3" / f"{stage}.yaml")
        arguments = [*start, "-m", "dualign", command, recipe, *overrides]
        returncode, output = run_to_end(arguments)
        assert returncode == 0, output[-3000:]
        return Path(overrides[0].removeprefix("output_dir=")) / stage

    return run


def run_to_end(arguments: list[str]) -> tuple[int, str]:
    """Exit status and output. On a hang the workers are ended with the launcher: they are a group."""
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        arguments,
        env=environment,
        cwd=RECIPES.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            output += f"\nstill running after {LIMIT_SECONDS} s"
        return process.returncode, output


def on_cpu(launcher: str, folder: Path) -> Path:
    """The launcher's config for two processes without GPUs; the rest stays."""
    config = yaml.safe_load((RECIPES / "accelerate" / f"{launcher}.yaml").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config |= {"num_processes": 2, "use_cpu": True, "mixed_precision": "no"}
    config |= {"main_process_port": port}
    path = folder / f"{launcher}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


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


needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed")
LAUNCHERS = [
    pytest.param("fsdp2"),
    pytest.param("zero2", marks=[needs_deepspeed, pytest.mark.slow]),
    pytest.param("zero3", marks=needs_deepspeed),
]


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("stage", ["sft", pytest.param("apo", marks=pytest.mark.slow)])
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
