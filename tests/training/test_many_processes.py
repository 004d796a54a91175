"""Two CPU processes under ZeRO-2, ZeRO-3 and FSDP2 train as one process with the same global batch does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from dualign import engine
from dualign.errors import CheckpointError
from dualign.models.loading import load_checkpoint
from dualign.recipe import load_recipe
from dualign.rundir import read_run
from dualign.training.trainer import require_all_processes
from tests import processes
from tests.training.conftest import pair_rows, save_model, sum_rows, tokenizer, write_rows  # noqa: F401 - a fixture

HERE = Path(__file__).parent
TRAIN = {
    "max_steps": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_steps": 2,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:  # noqa: F811
    """A folder with a tiny model and rows of both modes."""
    folder = tmp_path_factory.mktemp("ground")
    save_model(folder / "model", tokenizer, kind="smollm3")
    write_rows(folder / "train.jsonl", sum_rows(120))
    write_rows(folder / "pairs.jsonl", pair_rows(40))
    return folder


def write_recipe(
    ground: Path, name: str, *, batch: int, lora: bool, launch: str | None = None, **train: object
) -> Path:
    """SFT, then APO on it. `launch` names the accelerate config that `dualign run` starts both stages with."""
    settings = {**TRAIN, "per_device_train_batch_size": batch, **train}
    common = {"lora": {"r": 4}} if lora else {}
    common |= {"launch": str(HERE / f"{launch}.yaml")} if launch else {}
    sft = {
        "name": "sft",
        "kind": "sft",
        "model": str(ground / "model"),
        "data": {"sources": [{"path": str(ground / "train.jsonl")}], "max_tokens": 128},
        "train": settings,
        **common,
    }
    apo = {
        "name": "apo",
        "kind": "preference",
        "model": "stage:sft",
        "data": {
            "sources": [{"path": str(ground / "pairs.jsonl")}],
            "max_tokens": 128,
            "packing": "none",
        },
        "train": {**settings, "loss_type": "apo_zero"},
        **common,
    }
    path = ground / f"{name}.yaml"
    path.write_text(json.dumps({"output_dir": str(ground / name), "seed": 3, "stages": [sft, apo]}))
    return path


def start(recipe: Path, *, sharding: str | None = None) -> subprocess.Popen[str]:
    """`dualign run`, in the processes of one launch (`sharding`) or starting one for each stage of the recipe."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(HERE / f"{sharding}.yaml")]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(HERE.parents[1]),
    }
    command = [sys.executable, *(launcher if sharding else ()), "-m", "dualign", "run", str(recipe)]
    return processes.start(command, env=environment)


def losses(ground: Path, name: str, stage: str) -> list[float]:
    log = (ground / name / stage / "log.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, log) if "loss" in entry]


@pytest.fixture(
    scope="module", params=[True, pytest.param(False, marks=pytest.mark.slow)], ids=["lora", "full"]
)
def alone(request: pytest.FixtureRequest, ground: Path) -> tuple[str, bool]:
    """The same recipe in one process with twice the batch."""
    name = f"alone-{'lora' if request.param else 'full'}"
    engine.run(load_recipe(write_recipe(ground, name, batch=2, lora=request.param), []))
    return name, request.param


@pytest.mark.usefixtures("deepspeed")
@pytest.mark.parametrize("sharding", ["zero2", "zero3", "fsdp2"])
def test_losses_are_those_of_one_process_and_the_result_loads(
    ground: Path, alone: tuple[str, bool], sharding: str
) -> None:
    """ZeRO-2 is started by `dualign run`, a launch for each stage; the others run both stages in one launch."""
    reference, lora = alone
    if not lora and sharding == "zero2":
        pytest.skip("its full fine-tuning is covered by the recipes' launcher tests")
    name = f"{sharding}-{'lora' if lora else 'full'}"
    if sharding == "zero2":
        processes.finish(start(write_recipe(ground, name, batch=1, lora=lora, launch=sharding)))
    else:
        processes.finish(start(write_recipe(ground, name, batch=1, lora=lora), sharding=sharding))
    for stage in ("sft", "apo"):
        assert losses(ground, name, stage) == pytest.approx(
            losses(ground, reference, stage), rel=1e-4
        )
        assert read_run(ground / name / stage)["checks"]["reload_max_logit_difference"] <= 1e-4
    assert losses(ground, name, "apo")[0] == pytest.approx(1.0, abs=1e-6)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        sharded, whole = (
            load_checkpoint(ground / item / "apo")(input_ids=ids).logits
            for item in (name, reference)
        )
    torch.testing.assert_close(sharded, whole, rtol=0, atol=5e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("deepspeed")
@pytest.mark.parametrize("sharding", ["zero2", "zero3", "fsdp2"])
def test_a_killed_launch_goes_on_and_ends_the_same(ground: Path, sharding: str) -> None:
    calm, rough = (
        write_recipe(ground, f"{sharding}-{kind}", batch=1, launch=sharding, lora=True, max_steps=8)
        for kind in ("calm", "rough")
    )
    processes.finish(start(calm))
    folder = (
        ground / f"{sharding}-rough" / ".sft.partial" / "checkpoints" / "checkpoint-4" / "complete"
    )
    process = start(rough)
    while not folder.exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert folder.exists()
    processes.finish(start(rough))
    for stage in ("sft", "apo"):
        ours, theirs = (losses(ground, f"{sharding}-{kind}", stage) for kind in ("rough", "calm"))
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_processes_that_would_each_train_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without use_cpu the processes of a CPU launch don't find each other."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    require_all_processes(2)
    with pytest.raises(CheckpointError, match="2 processes were started, but the trainer sees 1"):
        require_all_processes(1)
