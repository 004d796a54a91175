"""A few steps of a stage, and the plans that reckon with them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dualign import engine
from dualign.cost import trial
from dualign.cost.model_shape import ModelShape
from dualign.cost.plan import StagePlan, plan_stage
from dualign.errors import ConfigError
from dualign.recipe import Recipe, load_recipe
from tests.chat_model import make_model, make_tokenizer

ANSWER = {"role": "assistant", "content": "2"}
PROMPT = {"role": "user", "content": "1 + 1"}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A script that writes pairs, SFT on rows that aren't here, and APO on its model and the pairs."""
    monkeypatch.setenv("DUALIGN_CACHE", str(tmp_path / "cache"))
    tokenizer = make_tokenizer()
    make_model(tokenizer, width=16).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    pair = {"prompt": [PROMPT], "chosen": [ANSWER], "rejected": [PROMPT | {"role": "assistant"}]}
    lines = "".join(json.dumps({**pair, "mode": "no_think", "id": i}) + "\n" for i in range(6))
    script = f"import sys\nopen(sys.argv[2] + '/pairs.jsonl', 'w').write({lines!r})\n"
    (tmp_path / "make.py").write_text(script)
    train = {"per_device_train_batch_size": 1, "gradient_checkpointing": False}
    common = {"lora": {"r": 2}, "train": train}
    data = {"sources": [{"path": "stage:pairs/pairs.jsonl"}], "max_tokens": 128, "packing": "none"}
    sft_data = {"sources": [{"path": "ada/rows"}], "max_tokens": 128}
    stages = [
        {"name": "pairs", "kind": "script", "script": str(tmp_path / "make.py")},
        {"name": "sft", "kind": "sft", "model": str(tmp_path / "base"), "data": sft_data, **common},
        {"name": "apo", "kind": "preference", "model": "stage:sft", "data": data, **common},
    ]
    stages[1]["train"] = {**train, "max_steps": 8}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"output_dir": str(tmp_path / "out"), "stages": stages}))
    return load_recipe(path, [])


def planned(recipe: Recipe, **options: Any) -> dict[str, StagePlan]:
    statuses = engine.statuses(recipe, remember=False)
    plans = [plan_stage(recipe, status, statuses, **options) for status in statuses]
    return {plan.name: plan for plan in plans}


def test_rows_are_known_as_soon_as_they_exist_and_the_start_model_is_not(recipe: Recipe) -> None:
    assert planned(recipe)["apo"].waits_for == ("pairs",)
    engine.run(recipe, only="pairs", say=lambda _: None)
    plan = planned(recipe)["apo"]
    assert plan.cost is not None and plan.cost.rows == 6 and not plan.cost.seconds_at_most
    assert not plan.waits_for


def test_measured_steps_are_remembered_and_later_plans_reckon_with_them(
    recipe: Recipe, tmp_path: Path
) -> None:
    engine.run(recipe, only="pairs", say=lambda _: None)
    plans = planned(recipe, measure=True)
    entries = json.loads((tmp_path / "cache" / "speeds.json").read_text())
    speeds = {entry["stage"]: entry["tokens_per_second"] for entry in entries.values()}
    assert set(speeds) == {"sft", "apo"}
    for plan in (plans, planned(recipe)):
        for name, speed in speeds.items():
            cost = plan[name].cost
            assert cost is not None and cost.seconds is not None and cost.steps is not None
            tokens = cost.steps * cost.tokens_per_step
            assert cost.seconds == pytest.approx(tokens / speed)
            assert any("training time: as measured here" in note for note in cost.notes)
    assert plans["sft"].cost is not None and plans["sft"].cost.seconds_at_most
    assert not (tmp_path / "out" / ".sft.partial").exists()

    changed = load_recipe(recipe.file, ["sft.lora.r=4"])  # another step
    sft = planned(changed)["sft"].cost
    assert sft is not None and any("a guess" in note for note in sft.notes)


def test_the_first_step_warms_up_unless_it_is_the_only_one() -> None:
    assert trial._mean_step(10.0, [15.0, 17.0, 19.0, 21.0]) == 2.0
    assert trial._mean_step(10.0, [50.0]) == 40.0


def test_a_damaged_memory_is_no_memory_and_a_launched_stage_is_said(
    recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache" / "speeds.json").write_text("{")
    shape = ModelShape.from_folder(tmp_path / "base")
    stage = recipe.stage("sft").config
    assert trial.remembered_speed(stage, shape) is None
    (tmp_path / "zero.yaml").write_text("num_processes: 2\n")
    launched = replace(stage, launch=str(tmp_path / "zero.yaml"))
    with pytest.raises(trial.ConfigError, match="one process"):
        trial.measure_speed(launched, shape, None, seed=0)


def test_margins_of_the_start_model_are_measured_shown_and_warned_of(
    recipe: Recipe, tmp_path: Path
) -> None:
    """The pairs' own start model is asked; where another stands in for it, nobody is."""
    engine.run(recipe, only="pairs", say=lambda _: None)

    def notes(**options: Any) -> list[str]:
        own = load_recipe(
            recipe.file, [f"apo.model={tmp_path / 'base'}", "apo.train.loss_type=ipo"]
        )
        cost = planned(own, **options)["apo"].cost
        assert cost is not None
        return [note for note in cost.notes if "start model" in note]

    assert notes() == [
        "what the start model says of the pairs isn't known yet: dualign plan --measure asks it"
    ]
    measured = notes(measure=True)
    assert "start model: finds the chosen answer likelier in" in measured[0]
    assert notes() == measured
    entries = json.loads((tmp_path / "cache" / "start-margins.json").read_text())
    (entry,) = entries.values()
    assert len(entry["margins"]) == 6
    words = recipe.stage("apo").config
    down = replace(words, train={**words.train, "loss_type": "apo_down"})
    assert "warning: the start model finds" in down.start_words([-1.0] * 6)[1]
    assert len(down.start_words([1.0] * 6)) == 1
    stand_in = planned(recipe)["apo"].cost
    assert stand_in is not None and not any("start model" in note for note in stand_in.notes)


def test_plan_says_which_attention_auto_is_and_what_pairs_share(
    recipe: Recipe, tmp_path: Path
) -> None:
    engine.run(recipe, only="pairs", say=lambda _: None)

    def note(stage: str, *overrides: str) -> str:
        cost = planned(load_recipe(recipe.file, overrides))[stage].cost
        assert cost is not None
        return next((note for note in cost.notes if note.startswith("attention")), "")

    assert note("sft") == "attention: auto is dualign, each document by itself"
    assert note("apo") == "attention: auto is dualign; the answers of a pair share its prompt"
    assert note("sft", "sft.attn_implementation=sdpa") == ""
    named = note("apo", "apo.attn_implementation=eager")
    assert named == (
        "attention: eager; each answer of a pair has its prompt again, which they would share without "
        "attn_implementation"
    )
    settings = json.loads((tmp_path / "base" / "config.json").read_text())
    settings["attention_dropout"] = 0.1
    (tmp_path / "base" / "config.json").write_text(json.dumps(settings))
    assert note("sft") == "attention: auto is sdpa: it has dropout in its attention"
    assert note("apo") == (
        "attention: auto is sdpa: it has dropout in its attention; each answer of a pair has its prompt again"
    )


def test_plan_refuses_pairs_beyond_a_batch_and_pauses_beyond_the_end(recipe: Recipe) -> None:
    engine.run(recipe, only="pairs", say=lambda _: None)
    stages = json.loads(recipe.file.read_text())
    del stages["stages"][2]["train"]["per_device_train_batch_size"]
    recipe.file.write_text(json.dumps(stages))
    with pytest.raises(
        ConfigError, match=r"stage apo: batch_tokens: the pair in place 0 has \d+ tokens"
    ):
        planned(load_recipe(recipe.file, ["apo.batch_tokens=9"]))
    with pytest.raises(
        ConfigError, match=r"stage sft: pause_at_step: the stage has 8 steps, found 9"
    ):
        planned(load_recipe(recipe.file, ["sft.pause_at_step=9"]))
    with pytest.raises(
        ConfigError, match=r"stage apo: pause_at_step: the stage has 3 steps, found 4"
    ):
        planned(load_recipe(recipe.file, ["apo.pause_at_step=4"]))  # 6 pairs, 8 a batch, 3 epochs
    planned(load_recipe(recipe.file, ["apo.pause_at_step=3"]))
