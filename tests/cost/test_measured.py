"""The guess of a stage's time: from what trained here before, else from an assumption that is said."""

import json
from pathlib import Path
from typing import Any

import pytest

from dualign.cost.plan import TrainingCost, plan_stage
from dualign.cost.show import show_plan
from dualign.engine import statuses
from dualign.models.device import device_name
from dualign.recipe import Recipe, load_recipe

MODEL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 384,
}
STEPS, ROWS = 8, 4


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """SFT and two equal APO stages, whose data is on the hub."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(MODEL))
    train = {"max_steps": STEPS, "per_device_train_batch_size": ROWS}
    data = {"sources": [{"path": "ada/rows"}], "max_tokens": 256}
    model, lora = str(tmp_path / "model"), {"r": 4}
    apo = {"kind": "preference", "model": model, "train": train, "lora": lora}
    apo["data"] = {**data, "packing": "none"}
    stages = [
        {"name": "sft", "kind": "sft", "model": model, "train": train, "lora": lora, "data": data},
        {"name": "apo-1", **apo},
        {"name": "apo-2", **apo},
    ]
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"output_dir": str(tmp_path / "out"), "stages": stages}))
    return load_recipe(path, [])


def costs(recipe: Recipe) -> dict[str, TrainingCost]:
    stages = statuses(recipe, remember=False)
    plans = [plan_stage(recipe, status, stages) for status in stages]
    return {plan.name: plan.cost for plan in plans if plan.cost}


def trained(
    recipe: Recipe,
    name: str,
    *,
    lora: int = 4,
    config_dtype: str = "float32",
    **facts: Any,
) -> None:
    """The record of a run that made 6400 tokens in 100 seconds, of the time before `dtype: auto`."""
    types = {key: facts.pop(key) for key in ("dtype", "arithmetic") if key in facts}
    config = recipe.stage(name).config
    metrics = {"tokens": 6400, "train_seconds": 100.0, "steps": STEPS, "device": device_name()}
    metrics |= types
    settings = {"dtype": config_dtype, "quantization": None, "launch": None}
    settings |= {"attn_implementation": config.attn_implementation, "lora": {"r": lora}}
    record = {"fingerprint": "of other settings", "metrics": metrics, "resumed": 0, **facts}
    record["config"] = {**settings, "train": dict(config.train)}
    (recipe.output_dir / name).mkdir(parents=True)
    (recipe.output_dir / name / "run.json").write_text(json.dumps(record))


def test_equal_stages_get_equal_guesses_and_the_assumption_is_said(recipe: Recipe) -> None:
    cost = costs(recipe)
    assert cost["apo-1"].seconds == cost["apo-2"].seconds
    for stage in cost.values():
        assert stage.seconds_at_most
        said = "\n".join(stage.notes)
        assert "training time: a guess" in said and "dualign plan --measure" in said
        assert "the rows aren't known yet; they are taken to be as long as max_tokens" in said


def test_a_stage_is_as_fast_as_it_was(recipe: Recipe) -> None:
    """Its rows are as long as they were, too: 6400 tokens in 8 steps of 4 rows."""
    trained(recipe, "apo-1")
    cost = costs(recipe)["apo-1"]
    assert cost.seconds == pytest.approx(100)
    assert not cost.seconds_at_most
    assert "training time: as apo-1 trained here before, 64 tokens per second" in cost.notes
    assert "they are taken to be as long as in its earlier run" in cost.notes[1]


def test_a_stage_is_as_fast_as_its_like(recipe: Recipe) -> None:
    trained(recipe, "apo-1")
    cost = costs(recipe)
    tokens = STEPS * ROWS * 2 * 256  # both sides of a pair, at most
    assert cost["apo-2"].seconds == pytest.approx(tokens / 64)
    assert cost["apo-2"].seconds_at_most
    # SFT has no reference to ask, so that it costs less per token.
    assert 0.5 * 256 / 64 < cost["sft"].seconds / (STEPS * ROWS) < 256 / 64
    assert "as apo-1 trained here before" in cost["sft"].notes[0]


def test_a_run_in_other_types_isnt_used(recipe: Recipe) -> None:
    """dtype: auto was bfloat16 then, say on a GPU that is gone."""
    trained(recipe, "apo-1", config_dtype="auto", dtype="bfloat16", arithmetic="bfloat16")
    assert "training time: a guess" in "\n".join(costs(recipe)["apo-2"].notes)


def test_its_own_kind_comes_before_another(recipe: Recipe) -> None:
    trained(recipe, "sft")
    trained(recipe, "apo-1")
    assert "as apo-1 trained" in costs(recipe)["apo-2"].notes[0]


@pytest.mark.parametrize(
    "change",
    [
        {"resumed": 1},
        {"lora": 16},
        {"metrics": {"tokens": 1, "train_seconds": 9, "steps": 1, "device": "another"}},
        {"metrics": {"tokens": None, "train_seconds": None, "steps": 0}},
    ],
    ids=["resumed", "another rank", "another device", "no steps"],
)
def test_a_run_that_compares_with_nothing_isnt_used(recipe: Recipe, change: dict[str, Any]) -> None:
    trained(recipe, "apo-1", **change)
    assert "training time: a guess" in "\n".join(costs(recipe)["apo-2"].notes)


def test_the_plan_prints_a_bound_as_one(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(recipe)
    assert "at most about" in capsys.readouterr().out
