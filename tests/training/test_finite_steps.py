"""A NaN or an infinity ends the run where it appears, and never reaches a finished run directory."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dualign import engine
from dualign.checkpoints.finite import non_finite_tensors
from dualign.errors import TrainingError
from dualign.recipe import load_recipe
from dualign.rundir import read_run
from tests.training.test_preflight import write_recipe


def refusal(path: Path) -> str:
    with pytest.raises(TrainingError) as caught:
        engine.run(load_recipe(path, []), say=lambda _: None)
    assert not read_run(path.parent / "out" / "stage")
    return str(caught.value)


def broken(folder: Path, model: Path, value: float) -> Path:
    """A copy of a model of which one weight has the value."""
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", ["sft", "preference"])
def test_a_run_that_diverges_stops_at_the_step_and_keeps_the_checkpoint_before(
    tiny: Path, rows: Path, tmp_path: Path, kind: str
) -> None:
    # The first steps are small; then the learning rate is past what float32 holds.
    train = {
        "learning_rate": 1e38,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 1,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": None,
    }
    path = write_recipe(tmp_path, tiny, rows, kind=kind, train=train, verify_reload=False)
    message = refusal(path)
    step = int(message.split()[1])
    assert message.startswith(f"step {step} of 6: not a number, or infinite: loss ")
    work = tmp_path / "out" / ".stage.partial" / "checkpoints"
    assert f"checkpoint-{step - 1} stays" in message
    assert (work / f"checkpoint-{step - 1}" / "complete").is_file()
    assert "try a lower train.learning_rate (now 1e+38)" in message
    assert "think train: '<|im_start|>" in message or "think pairs: '<|im_start|>" in message


def test_a_start_that_is_broken_is_named(tiny: Path, rows: Path, tmp_path: Path) -> None:
    model = broken(tmp_path / "model", tiny, float("nan"))
    message = refusal(write_recipe(tmp_path, model, rows))
    assert "step 1 of 2" in message
    assert "starts from holds such values itself: model.layers.1.mlp.down_proj" in message


@pytest.mark.parametrize("keys", [{}, {"lora": {"r": 2}}, {"lora": {"r": 2}, "save": "merged"}])
def test_weights_that_the_last_step_broke_are_not_published(
    tiny: Path, rows: Path, tmp_path: Path, keys: dict[str, Any]
) -> None:
    """No step comes after it that would see them, and verify_reload is off."""
    train = {
        "learning_rate": 1e39,
        "max_steps": 1,
        "lr_scheduler_type": "constant",
        "save_strategy": "steps",
        "save_steps": 1,
    }
    path = write_recipe(tmp_path, tiny, rows, train=train, verify_reload=False, **keys)
    message = refusal(path)
    assert "trained tensors hold NaN or infinite values, such as " in message
    assert "nothing was published" in message
    assert (tmp_path / "out" / ".stage.partial" / "checkpoints" / "checkpoint-1").is_dir()
    assert refusal(path) == message  # resumed after the last step, it takes no step more


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_value_that_is_not_finite_is_counted(
    tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    large = torch.full((4, 4), torch.finfo(dtype).max, dtype=dtype)  # its sum overflows, it is fine
    bad = torch.ones(8, dtype=dtype)
    bad[3], bad[5] = value, -value
    save_file(
        {"bad": bad, "large": large, "ids": torch.ones(2, dtype=torch.long)},
        tmp_path / "model.safetensors",
    )
    assert non_finite_tensors(tmp_path) == {"model.safetensors: bad": 2}
