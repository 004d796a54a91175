"""Two CPU processes under ZeRO-2, ZeRO-3 and FSDP2 train as one process with the same global batch does."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dualign import engine
from dualign.errors import CheckpointError
from dualign.models.loading import load_checkpoint
from dualign.recipe import load_recipe
from dualign.rundir import read_run
from dualign.training.trainer import require_all_processes
from tests import processes

ROOT = Path(__file__).parents[2]
TRAIN = {
    "max_steps": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_steps": 2,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}
# SFT and APO on it with LoRA, and the same with all weights.
STAGES = ("sft", "apo", "full-sft", "full-apo")


def stage(ground: Path, name: str) -> dict[str, object]:
    """What is saved is loaded again, in another process, where a chain of stages ends."""
    start, _, kind = name.rpartition("-")
    sft = kind == "sft"
    data = {"sources": [{"path": str(ground / ("train.jsonl" if sft else "pairs.jsonl"))}]}
    return {
        "name": name,
        "kind": "sft" if sft else "preference",
        "model": str(ground / "model") if sft else f"stage:{name[:-3]}sft",
        "data": {**data, "max_tokens": 128, **({} if sft else {"packing": "none"})},
        "verify_reload": not sft,
        **({} if start else {"lora": {"r": 4}}),
    }


def write_recipe(
    ground: Path,
    name: str,
    *,
    batch: int,
    stages: tuple[str, ...] = ("sft", "apo"),
    launch: str | None = None,
    **train: object,
) -> Path:
    """`launch` names the launcher config that `dualign run` starts each stage with."""
    settings = {**TRAIN, "per_device_train_batch_size": batch, **train}
    if name.startswith("fsdp2"):
        settings["accelerator_config"] = {"use_configured_state": True}  # tests/rank.py sets it up
    launcher = {"launch": str(processes.on_cpu(launch, ground))} if launch else {}
    entries = []
    for entry in (stage(ground, item) for item in stages):
        loss = {} if entry["kind"] == "sft" else {"loss_type": "apo_zero"}
        entries.append({**entry, "train": {**settings, **loss}, **launcher})
    path = ground / f"{name}.yaml"
    path.write_text(json.dumps({"output_dir": str(ground / name), "seed": 3, "stages": entries}))
    return path


def start(recipe: Path) -> subprocess.Popen[str]:
    """`dualign run`, which starts a launch for each stage of the recipe."""
    environment = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dualign", "run", str(recipe)]
    return processes.start(command, env=os.environ | environment)


def run(recipe: Path, launcher: Path, log: Path, *overrides: str) -> None:
    """All stages in one launch, whose ranks are forks."""
    processes.Fork("run", str(recipe), *overrides, log=log, launcher=launcher).finish()


def losses(stage: Path) -> list[float]:
    log = (stage / "log.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, log) if "loss" in entry]


def gradient_norms(stage: Path) -> list[float]:
    log = (stage / "log.jsonl").read_text().splitlines()
    return [entry["grad_norm"] for entry in map(json.loads, log) if "grad_norm" in entry]


@pytest.fixture(scope="module")
def alone(ground: Path) -> Callable[..., Path]:
    """The folder of a stage as one process trains it on steps of so many rows, after those before it."""

    def trained(stage: str, rows: int = 2) -> Path:
        batches = {"batch": 2, "gradient_accumulation_steps": rows // 2}
        folder = ground / f"alone-{rows}" / stage
        if not folder.exists():
            recipe = write_recipe(ground, f"alone-{rows}", stages=STAGES, **batches)
            engine.run(load_recipe(recipe, []), only=stage)
        return folder

    return trained


@pytest.mark.usefixtures("deepspeed")
@pytest.mark.parametrize(
    ("sharding", "stages"),
    [
        ("zero2", STAGES[:1]),
        ("zero3", STAGES[:3]),
        ("fsdp2", ("sft", "full-sft")),  # an APO stage loads what it saved in a fresh process: slow
        *(
            pytest.param(name, STAGES, marks=pytest.mark.slow)
            for name in ("zero2", "zero3", "fsdp2")
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_losses_are_those_of_one_process_and_the_result_loads(
    ground: Path, alone: Callable[..., Path], sharding: str, stages: tuple[str, ...]
) -> None:
    """ZeRO-2 is started by `dualign run`, a launch for each stage; the others run all stages in one launch, in forks.

    FSDP2 writes a sharded checkpoint midway through the last stage, in the background, and one process
    goes on with it.
    """
    name = f"{sharding}-{len(stages)}"
    if sharding == "zero2":
        recipe = write_recipe(ground, name, batch=1, stages=stages, launch=sharding)
        processes.finish(start(recipe))
    else:
        recipe = write_recipe(ground, name, batch=1, stages=stages)
        log = recipe.with_suffix(".log")
        last = stages[-1]
        background = [f"{last}.async_checkpoints=true"] if sharding == "fsdp2" else []
        pauses = [*background, f"{last}.pause_at_step=2"] if sharding == "fsdp2" else []
        run(recipe, processes.on_cpu(sharding, ground), log, *pauses)
        said = log.read_text()
        assert "refuses the trial" not in said, "later stages train with the attention of the first"
        if pauses:
            shards = (ground / name).glob(".*.partial/checkpoints/checkpoint-2/*/__*_0.distcp")
            assert len([*shards]) == 4, "of weights and optimizer, by both processes"
            run(recipe, processes.on_cpu(sharding, ground, count=1), log, *background)
            said = log.read_text()
            assert "processes: 1 instead of 2; gradient_accumulation_steps: 2" in said
        assert said.count("report: ") == 1, "rank 0 writes it"
    ids = torch.tensor([[5, 6, 7, 8]])
    for stage in stages:
        folders = (ground / name / stage, alone(stage))
        ours, expected = map(losses, folders)
        assert ours == pytest.approx(expected, rel=1e-4)
        with torch.no_grad():
            sharded, whole = (load_checkpoint(item)(input_ids=ids).logits for item in folders)
        torch.testing.assert_close(sharded, whole, rtol=0, atol=5e-3)
        if stage.endswith("apo"):
            assert ours[0] == pytest.approx(1.0, abs=1e-6)
            checks = read_run(ground / name / stage)["checks"]
            assert checks["reload_max_logit_difference"] <= 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("deepspeed")
@pytest.mark.parametrize("sharding", ["zero2", "zero3", "fsdp2"])
def test_mlps_in_tiles_train_alike(ground: Path, sharding: str) -> None:
    """Rows of one and of two tiles, inside of checkpointed layers whose weights are gathered; a reference too."""
    stages = STAGES[2:]
    changes = {"gradient_checkpointing": True, "max_steps": 2}
    recipe = write_recipe(ground, f"{sharding}-tiles", batch=1, stages=stages, **changes)
    logged = []
    for tiled in ("false", "true"):
        folder = ground / f"{sharding}-tiles-{tiled}"
        keys = ["full-sft.data.max_tokens=4000", "full-apo.train.per_device_train_batch_size=24"]
        keys += [f"{stage}.tiled_mlp={tiled}" for stage in stages]
        log = folder.with_suffix(".log")
        run(recipe, processes.on_cpu(sharding, ground), log, f"output_dir={folder}", *keys)
        figures = [(losses(folder / stage), gradient_norms(folder / stage)) for stage in stages]
        logged.append([figure for pair in figures for part in pair for figure in part])
    assert len(logged[0]) == 8
    assert logged[1] == pytest.approx(logged[0], rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("deepspeed")
@pytest.mark.parametrize(
    ("sharding", "keys"),
    [
        ("zero2", []),
        ("zero3", []),
        ("fsdp2", []),
        ("fsdp2", ["sft.async_checkpoints=true", "apo.async_checkpoints=true"]),
    ],
    ids=["zero2", "zero3", "fsdp2", "fsdp2 in the background"],
)
def test_a_killed_launch_goes_on_and_ends_the_same(
    ground: Path, sharding: str, keys: list[str]
) -> None:
    """One checkpoint is kept, and the one before is there until the next is complete."""
    name, launcher = f"{sharding}-{len(keys)}", processes.on_cpu(sharding, ground)
    calm, rough = (
        write_recipe(ground, f"{name}-{kind}", batch=1, max_steps=8, save_total_limit=1)
        for kind in ("calm", "rough")
    )
    run(calm, launcher, calm.with_suffix(".log"), *keys)
    work = ground / f"{name}-rough" / ".sft.partial"
    checkpoint = work / "checkpoints" / "checkpoint-4"
    log = rough.with_suffix(".log")
    process = processes.Fork("run", str(rough), *keys, log=log, launcher=launcher)
    while not checkpoint.exists() and process.runs():
        time.sleep(0.002)
    process.kill()  # often in the middle of writing it
    assert [*checkpoint.parent.glob("checkpoint-*/complete")]
    run(rough, launcher, log, *keys)
    assert read_run(ground / f"{name}-rough" / "sft")["resumed"] == 1
    for stage in ("sft", "apo"):
        ours, theirs = (losses(ground / f"{name}-{kind}" / stage) for kind in ("rough", "calm"))
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("deepspeed")
@pytest.mark.parametrize(
    ("sharding", "first", "then", "stage", "rows"),
    [
        ("fsdp2", 1, 2, "full-sft", 2),
        ("fsdp2", 2, 1, "sft", 2),
        ("fsdp2", 2, 3, "full-sft", 6),
        ("fsdp2", 3, 1, "sft", 6),
        ("zero2", 2, 1, "full-sft", 2),
        ("zero2", 2, 3, "full-sft", 6),
        ("zero3", 2, 3, "full-sft", 6),
    ],
)
def test_another_number_of_processes_goes_on_with_the_same_losses(
    ground: Path,
    alone: Callable[..., Path],
    sharding: str,
    first: int,
    then: int,
    stage: str,
    rows: int,
) -> None:
    name = f"{sharding}-{stage}-{first}-{then}"
    recipe = write_recipe(
        ground, name, batch=1, stages=(stage,), gradient_accumulation_steps=rows // first
    )
    log = recipe.with_suffix(".log")
    for count, overrides in ((first, [f"{stage}.pause_at_step=2"]), (then, [])):
        run(recipe, processes.on_cpu(sharding, ground, count=count), log, *overrides)
    assert f"processes: {then} instead of {first}" in log.read_text()
    assert losses(ground / name / stage) == pytest.approx(losses(alone(stage, rows)), rel=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("deepspeed")
def test_zero3_keeps_steps_and_weight_decay_of_each_group_on_another_number(ground: Path) -> None:
    """DeepSpeed's reader counts steps twice and decays norms, too: seen some steps later."""
    train = {"max_steps": 8, "weight_decay": 1.0}
    calm, rough = (
        write_recipe(ground, f"zero3-{name}", batch=1, stages=("full-sft",), **train)
        for name in ("calm", "rough")
    )
    log = rough.with_suffix(".log")
    run(calm, processes.on_cpu("zero3", ground), calm.with_suffix(".log"))
    run(rough, processes.on_cpu("zero3", ground), log, "full-sft.pause_at_step=2")
    run(rough, processes.on_cpu("zero3", ground, count=1), log)
    expected = losses(ground / "zero3-calm" / "full-sft")
    assert losses(ground / "zero3-rough" / "full-sft") == pytest.approx(expected, rel=1e-4)


def test_processes_that_would_each_train_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without use_cpu the processes of a CPU launch don't find each other."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    require_all_processes(2)
    with pytest.raises(CheckpointError, match="2 processes were started, but the trainer sees 1"):
        require_all_processes(1)
