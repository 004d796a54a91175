"""What a model could do before is measured in both modes while it trains, and it trains to the same bits."""

import json
from pathlib import Path
from typing import Any

import pytest

from dualign.errors import CheckpointError, ConfigError, TrainingError
from dualign.rundir import read_run
from tests.retention.conftest import LORA, Write, retain, right_at_start, run, weights


def measurements(run_dir: Path) -> list[dict[str, Any]]:
    return read_run(run_dir)["metrics"]["retain"]["measurements"]


@pytest.mark.parametrize("kind", ["sft", "preference"])
def test_a_stage_that_is_watched_trains_to_the_same_bits(
    write: Write, task_file: Path, kind: str
) -> None:
    """With dropout, so that a random number more or less would show."""
    keys = {
        "kind": kind,
        "lora": LORA,
        "train": {"disable_dropout": False} if kind != "sft" else {},
    }
    plain = run(write("plain", **keys))
    watched = run(write("watched", **keys, retain=retain(task_file, every=1)))
    assert weights(plain) == weights(watched)
    assert [entry["step"] for entry in measurements(watched)] == [0, 1, 2, 3, 4]
    logs = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (plain, watched)
    ]
    losses = [[row for row in log if "loss" in row] for log in logs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_the_start_is_what_it_was_and_the_end_is_compared_with_it(
    write: Write, task_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        folder = run(write("run", retain=retain(task_file, every=3)))
    start, *_, end = measurements(folder)
    accuracies = {mode: cell["accuracy"] for mode, cell in start["tasks"]["sums"].items()}
    assert accuracies == right_at_start() == {"think": 1.0, "no_think": 0.25}
    assert [entry["step"] for entry in measurements(folder)] == [0, 3, 4]
    cell = end["tasks"]["sums"]["think"]
    assert cell["accuracy"] == 0 and cell["change"] == -1, "it forgot"
    assert cell["change_ci"][1] < 0 and cell["n"] == 4
    assert "step 0/4  retain sums: think 100.0 %; no_think 25.0 %" in caplog.text
    assert (
        "step 4/4  retain sums: think 0.0 %, -100.0 [-100.0, -16.8] since the start; no_think"
        in caplog.text
    )
    lines = [json.loads(line) for line in (folder / "retention.jsonl").read_text().splitlines()]
    assert {(row["step"], row["mode"]) for row in lines} == {
        (step, mode) for step in (0, 3, 4) for mode in ("think", "no_think")
    }
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["eval_retain/sums/think"] for row in logged if "eval_retain/sums/think" in row] == [
        entry["tasks"]["sums"]["think"]["accuracy"] for entry in measurements(folder)
    ]


def test_a_stage_that_paused_compares_with_the_start_and_not_with_where_it_went_on(
    write: Write, task_file: Path
) -> None:
    keys = {"lora": LORA, "retain": retain(task_file, every=2)}
    calm, rough = write("calm", **keys), write("rough", **keys)
    end = run(calm)
    run(rough, "pause_at_step=2")
    folder = run(rough)
    assert weights(end) == weights(folder)
    without_time = [
        [{**entry, "seconds": 0} for entry in measurements(path)] for path in (end, folder)
    ]
    assert without_time[0] == without_time[1] and len(without_time[0]) == 3


def test_a_stage_that_goes_on_without_the_figures_of_its_start_is_refused(
    write: Write, task_file: Path
) -> None:
    recipe = write("run", lora=LORA, retain=retain(task_file))
    run(recipe, "pause_at_step=2")
    (recipe.with_suffix("") / ".sft.partial" / "retention.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"retention.json is gone, so what is measured from step 2 on"
    ):
        run(recipe)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"tasks": []}, "retain.tasks: nothing to measure"),
        ({"every": 0}, "retain.every: expected 1 or more, found 0"),
        ({"tasks": ["gone.yaml"]}, "'gone.yaml': no such file"),
        ({"evry": 3}, "did you mean 'every'"),
    ],
)
def test_what_the_block_says_wrongly_is_refused(
    write: Write, task_file: Path, keys: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        run(write("run", retain=retain(task_file, **keys)))


def test_what_cannot_be_asked_or_measured_is_refused_before_the_first_step(
    write: Write, task_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "task.yaml").write_text("name: t\nrows: t.jsonl\nverifier: intger\n")
    (tmp_path / "t.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\n')
    (tmp_path / "zero3.yaml").write_text("distributed_type: DEEPSPEED\n")
    keys = {"launch": str(tmp_path / "zero3.yaml")}
    recipe = write("run", retain=retain(task_file, watch=[str(tmp_path / "task.yaml")]), **keys)
    with pytest.raises(ConfigError) as refusal:
        run(recipe)
    assert "retain.watch: " in str(refusal.value) and "did you mean 'integer'" in str(refusal.value)
    assert "retain: DEEPSPEED spreads the weights over processes" in str(refusal.value)


def test_a_bound_that_is_broken_stops_the_stage_at_the_last_step_within(
    write: Write, task_file: Path
) -> None:
    """The rate rises from zero: the first step changes nothing, the second forgets."""
    train = {"warmup_steps": 1, "learning_rate": 0.1, "save_strategy": "no", "max_steps": 6}
    block = retain(task_file, every=1, bound={"accuracy": -0.05})
    keys = {"lora": LORA, "train": train}
    folder = run(write("stops", **keys, retain=block))
    metrics = read_run(folder)["metrics"]
    broken = next(entry for entry in metrics["retain"]["measurements"] if entry["broken"])
    assert broken["broken"][0].startswith("sums, think: -100.0 [")
    assert metrics["steps"] == broken["step"] < 6
    assert metrics["published_step"] == broken["step"] - 1
    assert metrics["stopped"] == f"a bound of retain is broken at step {broken['step']}"
    best = write("best", **keys, retain={**block, "on_bound": "best"})
    metrics = read_run(run(best))["metrics"]
    assert metrics["steps"] == 6 and metrics["published_step"] == broken["step"] - 1
    assert "stopped" not in metrics
    assert weights(folder) == weights(best.with_suffix("") / "sft")


def test_a_stage_without_a_step_within_its_bounds_publishes_nothing(
    write: Write, task_file: Path
) -> None:
    recipe = write("run", retain=retain(task_file, every=2, bound={"accuracy": -0.05}))
    with pytest.raises(
        TrainingError, match=r"broken at step 2, and no step before it was measured within"
    ):
        run(recipe)
    out = recipe.with_suffix("")
    assert not (out / "sft").exists() and (out / ".sft.partial/checkpoints/checkpoint-2").is_dir()


def test_the_best_step_by_a_task_is_published(write: Write, task_file: Path) -> None:
    early = {"metric": "retain/sums/think", "patience": 2}
    train = {"warmup_steps": 1, "learning_rate": 0.1, "max_steps": 6}
    block = retain(task_file, every=1)
    folder = run(write("run", lora=LORA, train=train, retain=block, early_stopping=early))
    metrics = read_run(folder)["metrics"]
    assert metrics["published_step"] == 1 and metrics["best"]["value"] == 1.0
    assert (
        metrics["steps"] == 3 and "2 measurements of eval_retain/sums/think" in metrics["stopped"]
    )


def test_held_out_rows_and_fixed_prompts_are_measured_beside_the_tasks(
    write: Write, task_file: Path, other_rows: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The rows are those that it trains on, so their loss falls."""
    held_out = [{"path": str(other_rows / "rows.jsonl"), "rows": 12}]
    block = retain(task_file, held_out=held_out, prompts=["What is 1+2?"], bound={"kl": 50})
    with caplog.at_level("INFO"):
        folder = run(write("run", retain=block, train={"learning_rate": 1e-3}))
    start, end = measurements(folder)
    assert start["kl"] == {"think": 0, "no_think": 0} and end["kl"]["think"] > 0
    assert end["loss"]["think"] < start["loss"]["think"], "it is trained on these rows"
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert logged[0]["eval_retain/loss/no_think"] == start["loss"]["no_think"]
    assert "no_think, 'What is 1+2?' -> '3'" in caplog.text
    assert "think, 'What is 1+2?' -> <think> 'one and two' </think> '3'" in caplog.text


def test_the_published_step_is_measured_although_it_was_none_of_those_asked_for(
    write: Write, task_file: Path, other_rows: Path
) -> None:
    """The held-out loss falls, and the highest is asked for; retain asks at the start and the end."""
    sources = [{"path": str(other_rows / "rows.jsonl")}]
    data = {"sources": sources, "packing": "none", "max_tokens": 256, "validation_rows": 2}
    highest = {"load_best_model_at_end": True, "greater_is_better": True}
    train = {"eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.3, "max_steps": 3}
    keys = {"lora": LORA, "train": {**train, **highest}, "data": data}
    folder = run(write("run", **keys, retain=retain(task_file)))
    metrics = read_run(folder)["metrics"]
    published = metrics["published_step"]
    assert [entry["step"] for entry in measurements(folder)] == sorted({0, published, 3})
    assert published < 3


def test_transformers_own_key_chooses_within_the_bounds(
    write: Write, task_file: Path, other_rows: Path
) -> None:
    """Its own best step is beyond the bound, and its rotation of checkpoints keeps that one."""
    rows = [{"path": str(other_rows / "rows.jsonl")}]
    by_steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps"}
    train = {**by_steps, "save_steps": 1, "save_total_limit": 1, "load_best_model_at_end": True}
    bounds = retain(task_file, every=1, bound={"kl": 0.003}, on_bound="best")
    data = {"sources": rows, "packing": "none", "max_tokens": 256, "validation_rows": 4}
    keys = {"lora": {"r": 4}, "train": {**train, "learning_rate": 2e-3}, "data": data}
    folder = run(write("native", **keys, retain=bounds))
    metrics = read_run(folder)["metrics"]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["eval_loss"] for row in log if "eval_loss" in row}
    within = [row["step"] for row in measurements(folder) if not row["broken"] and row["step"]]
    published = metrics["published_step"]
    assert published == min(within, key=losses.__getitem__)
    assert published != min(losses, key=losses.__getitem__), "its own choice is another"
