"""kill -9 at a random step, run again: the final weights are bit for bit those of a run that nobody disturbed."""

import json
import os
import random
import time
from pathlib import Path

import pytest

from dualign.rundir import read_run
from tests import processes

TRAIN = {
    "max_steps": 12,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_steps": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": False,
    "lr_scheduler_type": "cosine",
    "disable_tqdm": True,
}


def write_recipe(folder: Path, tiny: Path, rows: Path, *, full: bool = False) -> Path:
    """SFT with packing, shuffling, accumulation, dropout and NEFTune; APO on top of its adapter."""
    lora = {"r": 4, "lora_dropout": 0.1}
    sft = {
        "name": "sft",
        "kind": "sft",
        "model": str(tiny),
        "data": {"sources": [{"path": str(rows / "train.jsonl")}], "max_tokens": 128},
        "train": {**TRAIN, "neftune_noise_alpha": 5},
    }
    apo = {
        "name": "apo",
        "kind": "preference",
        "model": "stage:sft",
        "lora": lora,
        "data": {
            "sources": [{"path": str(rows / "pairs.jsonl")}],
            "max_tokens": 128,
            "packing": "none",
        },
        "train": {**TRAIN, "loss_type": "apo_zero", "disable_dropout": False},
    }
    stages = [sft] if full else [{**sft, "lora": lora}, apo]
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"output_dir": str(folder / "out"), "seed": 3, "stages": stages}))
    return path


def start(recipe: Path) -> processes.Fork:
    return processes.Fork("run", str(recipe), log=recipe.with_suffix(".log"))


def kill_at_checkpoint(recipe: Path, stage: str, step: int) -> None:
    """kill -9 as soon as the folder of that checkpoint appears: often in the middle of writing it."""
    folder = recipe.parent / "out" / f".{stage}.partial" / "checkpoints" / f"checkpoint-{step}"
    process = start(recipe)
    while not folder.exists() and process.runs():
        time.sleep(0.002)
    process.kill()
    assert folder.exists(), "the run ended before it could be killed"


def weights(recipe: Path, stage: str) -> bytes:
    folder = recipe.parent / "out" / stage
    found = [folder / name for name in ("adapter_model.safetensors", "model.safetensors")]
    return next(path for path in found if path.is_file()).read_bytes()


def test_killed_sft_and_apo_end_bit_identical(tiny: Path, rows: Path, tmp_path: Path) -> None:
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    calm.mkdir(), rough.mkdir()
    undisturbed, disturbed = (write_recipe(folder, tiny, rows) for folder in (calm, rough))
    start(undisturbed).finish()
    steps = random.Random(os.getpid())
    for stage in ("sft", "apo"):
        kill_at_checkpoint(disturbed, stage, 2 * steps.randrange(1, 7))
    start(disturbed).finish()
    for stage in ("sft", "apo"):
        assert weights(undisturbed, stage) == weights(disturbed, stage), stage
        assert read_run(rough / "out" / stage)["resumed"] == 1
        logs = [(folder / "out" / stage / "log.jsonl").read_text() for folder in (calm, rough)]
        losses = [[json.loads(line).get("loss") for line in log.splitlines()] for log in logs]
        assert losses[0] == losses[1]


@pytest.mark.slow
def test_killed_full_fine_tuning_ends_bit_identical(tiny: Path, rows: Path, tmp_path: Path) -> None:
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    calm.mkdir(), rough.mkdir()
    undisturbed, disturbed = (
        write_recipe(folder, tiny, rows, full=True) for folder in (calm, rough)
    )
    start(undisturbed).finish()
    for step in (2, 6, 10):
        kill_at_checkpoint(disturbed, "sft", step)
    start(disturbed).finish()
    assert weights(undisturbed, "sft") == weights(disturbed, "sft")
