"""A stage that goes on with another number of processes: the same rows in each step, or a refusal."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed
from transformers import TrainerControl, TrainerState, TrainingArguments

from dualign.data.config import DataConfig, SourceConfig
from dualign.errors import CheckpointError, TrainingError
from dualign.preference.config import PreferenceStage
from dualign.rundir import write_json
from dualign.sft.config import SFTStage
from dualign.training.checkpointing import MarkCompleteCheckpoints, _Background
from dualign.training.resuming import (
    COMPLETE,
    SHARDED_MODEL,
    Engine,
    last_checkpoint,
    require_engine,
    with_rows_of_checkpoint,
)

DATA = DataConfig(sources=(SourceConfig(path="rows.jsonl"),))
SFT = SFTStage(name="sft", model="m", data=DATA)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A stage that was cut off after steps of 16 rows on 4 processes."""
    folder = tmp_path / "checkpoints" / "checkpoint-3"
    folder.mkdir(parents=True)
    write_json(folder / COMPLETE, {"started": 4, "processes": 4, "rows_a_step": 16})
    return tmp_path


@pytest.mark.parametrize(
    ("processes", "settings", "environment", "accumulation"),
    [
        (1, {}, {}, 2),  # transformers' batch of 8
        (4, {"per_device_train_batch_size": 2}, {}, 2),
        (2, {"per_device_train_batch_size": 2}, {}, 4),
        (8, {"per_device_train_batch_size": 2}, {"PARALLELISM_CONFIG_SP_SIZE": "4"}, 4),
        (
            8,
            {"per_device_train_batch_size": 4, "accelerator_config": {"split_batches": True}},
            {},
            4,
        ),
    ],
    ids=["alone", "as many", "half", "four share a row", "a batch for all"],
)
def test_accumulation_makes_the_rows_of_the_checkpoint(
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    settings: dict[str, Any],
    environment: dict[str, str],
    accumulation: int,
) -> None:
    for name, value in {"WORLD_SIZE": str(processes), **environment}.items():
        monkeypatch.setenv(name, value)
    expected = {**settings, "gradient_accumulation_steps": accumulation}
    assert with_rows_of_checkpoint(SFT, settings, work) == expected


def test_rows_that_no_accumulation_makes_are_refused(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    says = "a step had 16 rows on 4 processes, and 3 processes with per_device_train_batch_size 2"
    with pytest.raises(CheckpointError, match=says):
        with_rows_of_checkpoint(SFT, {"per_device_train_batch_size": 2}, work)
    stage = PreferenceStage(name="apo", model="m", data=DATA, batch_tokens=100)
    with pytest.raises(CheckpointError, match="start 4 as before, not 3"):
        with_rows_of_checkpoint(stage, {}, work)


def test_nothing_is_changed_where_nothing_is_known(work: Path) -> None:
    settings = {"gradient_accumulation_steps": 5}
    (work / "checkpoints" / "checkpoint-3" / COMPLETE).write_text("")  # of an earlier version
    assert with_rows_of_checkpoint(SFT, settings, work) == settings
    assert with_rows_of_checkpoint(SFT, settings, work / "new") == settings


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("global_step3/shard.pt", "deepspeed"),
        ("pytorch_model_fsdp_0/__0_0.distcp", "fsdp-sharded"),
        ("pytorch_model_fsdp.bin", "fsdp-whole"),
        ("pytorch_model_fsdp_rank0.bin", "fsdp-whole"),
        ("optimizer.pt", "torch"),
    ],
)
def test_a_checkpoint_of_another_engine_is_refused(work: Path, name: str, engine: Engine) -> None:
    """Without DeepSpeed its optimizer's state would be left out, and the losses would say nothing of it."""
    checkpoint = work / "checkpoints" / "checkpoint-3"
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).touch()
    require_engine(checkpoint, engine)
    other: Engine = "torch" if engine == "deepspeed" else "deepspeed"
    with pytest.raises(CheckpointError, match=f"delete {work} to train anew"):
        require_engine(checkpoint, other)


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (1, None, {4}),
        (1, 1, {1, 4}),
        (2, 1, {1, 4}),
        (2, None, {3, 4}),
        (3, 1, {1, 3, 4}),
        (0, None, {1, 2, 3, 4}),
        (None, None, {1, 2, 3, 4}),
    ],
)
def test_older_checkpoints_go_once_the_next_is_complete(
    tmp_path: Path, limit: int | None, best: int | None, kept: set[int]
) -> None:
    """What is being written doesn't count: killed meanwhile, the run goes on from the one before."""
    later: list[Callable[[], None]] = []
    args = TrainingArguments(str(tmp_path / "checkpoints"), save_total_limit=limit, use_cpu=True)
    trainer: Any = SimpleNamespace(args=args, when_written=later.append)
    mark = MarkCompleteCheckpoints(trainer)
    assert args.save_total_limit is None, "transformers deletes none"
    folders = {step: tmp_path / "checkpoints" / f"checkpoint-{step}" for step in (1, 2, 3, 4)}
    for step, folder in folders.items():
        folder.mkdir(parents=True)
        state = TrainerState(global_step=step, is_world_process_zero=True)
        state.best_model_checkpoint = str(folders[best]) if best else None
        mark.on_save(args, state, TrainerControl())
        assert not (folder / COMPLETE).exists()
        if step > 1:
            assert folders[step - 1].exists(), "the next isn't complete"
        later.pop()()
    assert {step for step, folder in folders.items() if folder.exists()} == kept
    assert last_checkpoint(tmp_path) == str(folders[4])
    assert with_rows_of_checkpoint(SFT, {}, tmp_path)["gradient_accumulation_steps"] == 1


def test_a_checkpoint_that_cannot_be_written_ends_in_words(tmp_path: Path) -> None:
    """DCP raises what is no Exception, with tracebacks; the checkpoint never gets its mark."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        background = _Background()
        (tmp_path / "model" / ".metadata.tmp").mkdir(parents=True)
        background._groups = {"model": background._groups[SHARDED_MODEL]}
        background.save(tmp_path, {"model": {"weight": torch.ones(3)}})
        background.when_written((tmp_path / COMPLETE).touch)
        with pytest.raises(
            TrainingError, match="the checkpoint can't be written: rank 0: "
        ) as caught:
            background.wait()
        assert "Traceback" not in str(caught.value)
        assert not (tmp_path / COMPLETE).exists()
    finally:
        distributed.destroy_process_group()
