"""Losses in a stage: those without a reference load none, and what the start model says is kept."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from dualign.cost.stage_shape import training_shape
from tests.training.test_preflight import run, stage_of_recipe, write_recipe


def logged(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "train",
    [
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.0},
        {"loss_type": ["cpo", "sft"], "cpo_alpha": 0.0, "loss_weights": [1.0, 0.0]},
    ],
    ids=["simpo", "cpo"],
)
def test_a_loss_without_a_reference_is_of_the_policy_alone(
    tiny: Path, rows: Path, tmp_path: Path, train: dict[str, Any]
) -> None:
    """One pair a batch, and a likelihood term of weight 0: the loss is -log sigmoid(margin)."""
    train = {**train, "logging_steps": 1}
    path = write_recipe(tmp_path, tiny, rows, kind="preference", train=train)
    assert training_shape(stage_of_recipe(path), longest=128).reference is None
    out = run(path)
    for entry in logged(out)[:2]:
        margin = entry["rewards/margins"]
        assert margin != 0
        assert entry["loss"] == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-4)
    metrics = json.loads((out / "run.json").read_text())["metrics"]
    assert metrics["reference"] is None
    assert "start" not in metrics


def test_what_the_start_model_says_of_the_pairs_is_kept_and_warned_of(
    tiny: Path, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same pairs with chosen and rejected swapped have the opposite margin; one of both warns."""
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    pairs = [json.loads(line) for line in (rows / "pairs.jsonl").read_text().splitlines()]
    for pair in pairs:
        # A chosen answer that no model starts with.
        pair["chosen"][0]["content"] = "zq" * 20
    (swapped / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    train = {"loss_type": "sigmoid", "per_device_train_batch_size": 32, "max_steps": 1}
    path = write_recipe(tmp_path, tiny, swapped, kind="preference", train=train, lora={"r": 2})
    with caplog.at_level(logging.WARNING, logger="dualign"):
        out = run(path)
    metrics = json.loads((out / "run.json").read_text())["metrics"]
    assert metrics["reference"] == "adapter"
    assert metrics["start"]["pairs"] == 32
    warned = "compares the two alone" in caplog.text
    assert warned == (metrics["start"]["chosen_likelier"] < 0.5 - 1.64 * 0.5 / math.sqrt(32))
    assert logged(out)[0]["start/margin"] == metrics["start"]["margin"]
