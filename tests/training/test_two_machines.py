"""Two machines on loopback: `dualign run` on each, with a launcher and a rank of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from transformers import PreTrainedTokenizerFast

from dualign.machines import free_port
from tests import processes
from tests.training.conftest import save_model, sum_rows, tokenizer, write_rows  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
DDP = "distributed_type: MULTI_GPU\nuse_cpu: true\nnum_processes: 1\nmixed_precision: 'no'\n"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("ground")
    save_model(folder / "model", tokenizer, kind="smollm3")
    write_rows(folder / "train.jsonl", sum_rows(120))
    (folder / "ddp.yaml").write_text(DDP)
    return folder


def write_recipe(ground: Path, name: str, **launch: object) -> Path:
    """12 steps, with a checkpoint every 4."""
    keys = {"config_file": "ddp.yaml", "main_process_ip": "127.0.0.1", "num_machines": 2}
    train = {"max_steps": 12, "learning_rate": 1e-2, "logging_steps": 1, "save_steps": 4}
    train |= {"gradient_checkpointing": False, "per_device_train_batch_size": 1}
    stage = {
        "name": "sft",
        "kind": "sft",
        "model": "model",
        "verify_reload": False,
        "data": {"sources": [{"path": "train.jsonl"}], "max_tokens": 128},
        "train": train,
        "launch": {**keys, "main_process_port": free_port(), **launch},
    }
    path = ground / f"{name}.yaml"
    path.write_text(json.dumps({"output_dir": str(ground / name), "seed": 3, "stages": [stage]}))
    return path


def start(recipe: Path, *overrides: tuple[str, ...]) -> list[subprocess.Popen[str]]:
    """`dualign run RECIPE` on two machines, each with its overrides."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dualign", "run", "--machine-rank"]
    own = overrides or ((), ())
    return [
        processes.start([*command, str(number), str(recipe), *own[number]], env=environment)
        for number in (0, 1)
    ]


def kill_launcher_of_machine_1(recipe: Path, running: list[subprocess.Popen[str]]) -> None:
    """kill -9 once the checkpoint of step 4 is there."""
    work = recipe.with_suffix("") / ".sft.partial" / "checkpoints"
    processes.wait_until(
        lambda: (work / "checkpoint-4" / "complete").exists() or running[0].poll() is not None
    )
    (launcher,) = (
        child
        for child in psutil.Process(running[1].pid).children()
        if "dualign.first_failure" in child.cmdline()
    )
    launcher.kill()


def result(recipe: Path) -> tuple[bytes, list[object]]:
    """The bits of the weights, and loss and norm of each step."""
    folder = recipe.with_suffix("") / "sft"
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [(entry["step"], entry["loss"], entry["grad_norm"]) for entry in log if "loss" in entry]
    return (folder / "model.safetensors").read_bytes(), steps


@pytest.fixture(scope="module")
def calm(ground: Path) -> Path:
    """A run that nobody disturbs."""
    recipe = write_recipe(ground, "calm")
    said = [processes.finish(process) for process in start(recipe)]
    assert "finished in" in said[0] and "step 12/12" in said[0]
    assert "step 1/12" not in said[1], "rank 0 is on machine 0"
    assert [step for step, *_ in result(recipe)[1]] == list(range(1, 13))
    return recipe


def test_a_killed_launcher_ends_both_machines_and_a_new_run_ends_in_the_same_bits(
    ground: Path, calm: Path
) -> None:
    recipe = write_recipe(ground, "rough")
    running = start(recipe)
    kill_launcher_of_machine_1(recipe, running)
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [2, 2]
    for text in said:
        assert "machine 1 (" in text and "its launcher exited with -9" in text
    said = [processes.finish(process) for process in start(recipe)]
    assert "sft (sft): resuming" in said[0] and "step 5/12" in said[0]
    assert "step 4/12" not in said[0]
    assert result(recipe) == result(calm)


def test_with_max_restarts_a_killed_launcher_comes_back_and_the_bits_are_the_same(
    ground: Path, calm: Path
) -> None:
    recipe = write_recipe(ground, "elastic", max_restarts=2)
    running = start(recipe)
    kill_launcher_of_machine_1(recipe, running)
    said = [processes.finish(process) for process in running]
    assert "machine 1: its launcher ended by signal 9; starting it again" in said[1]
    assert "step 5/12" in said[0] + said[1]
    assert result(recipe) == result(calm)


def test_machines_that_differ_write_nothing(ground: Path) -> None:
    recipe = write_recipe(ground, "different")
    running = start(recipe, (), ("sft.train.learning_rate=1e-3",))
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [2, 2]
    for text in said:
        assert "the machines of this run differ; nothing was started" in text
        assert "stage sft: train of the recipe isn't what machine 0" in text
    assert not recipe.with_suffix("").exists()
