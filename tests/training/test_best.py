"""Which step a stage publishes: the best one by a figure, with its adapters, weights, and after a kill."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from dualign import engine
from dualign.errors import ConfigError, TrainingError
from dualign.recipe import load_recipe
from dualign.rundir import read_run
from dualign.training.best import WITHIN, Choice

TRAIN = {
    "max_steps": 6,
    "learning_rate": 1.0,  # so high that the second step of an adapter is the best
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "no",
    "per_device_train_batch_size": 2,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}


def write(folder: Path, tiny: Path, rows: Path, *stages: dict[str, Any]) -> Path:
    def whole(keys: dict[str, Any]) -> dict[str, Any]:
        kind = keys.get("kind", "sft")
        data = {
            "sources": [{"path": str(rows / ("train.jsonl" if kind == "sft" else "pairs.jsonl"))}],
            "validation_rows": 4,
            "max_tokens": 128,
            "packing": "none",
        }
        train = {**TRAIN, **keys.pop("train", {})}
        return {"kind": kind, "model": str(tiny), "data": data, "train": train, **keys}

    path = folder / "recipe.yaml"
    recipe = {"output_dir": str(folder / "out"), "seed": 3, "stages": [*map(whole, stages)]}
    path.write_text(json.dumps(recipe))
    return path


def run(recipe: Path, *overrides: str) -> Path:
    return engine.run(load_recipe(recipe, overrides), say=lambda text: None)[-1]


def log(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def lowest(run_dir: Path, name: str = "eval_loss") -> tuple[int, float]:
    figures = [(row[name], row["step"]) for row in log(run_dir) if name in row]
    return min(figures)[1], min(figures)[0]


def weights(folder: Path) -> dict[str, Any]:
    names = ("adapter_model.safetensors", "model.safetensors")
    return load_file(next(path for name in names if (path := folder / name).is_file()))


def test_a_choice_reads_the_log_alone() -> None:
    log = [
        {"step": 0, "eval_loss": 1.0, WITHIN: 1.0},
        *({"step": step, "eval_loss": loss} for step, loss in enumerate((5, 3, 4, 3, 2), 1)),
        *({"step": step, WITHIN: float(step < 4)} for step in range(1, 6)),
    ]
    by_loss = Choice(metric="eval_loss", lower=True, patience=2)
    assert by_loss.best(log) == (5, 2) and not by_loss.stop(log)
    assert by_loss.best(log[:5]) == (2, 3), "the first of equals; the start isn't one"
    assert by_loss.stop(log[:5]) == "2 measurements of eval_loss since step 2, and none is better"
    within = Choice(metric="eval_loss", lower=True, bounded=True, stops=True)
    assert within.best(log) == (2, 3) and within.stop(log).endswith("broken at step 4")
    assert Choice(metric=None, bounded=True).best(log) == (3, 3), "the last within the bounds"
    no_number = [{"step": 1, "eval_loss": float("nan")}, {"step": 2, "eval_loss": 3}]
    assert by_loss.best(no_number) == (2, 3)
    assert by_loss.best([]) is None and Choice(metric="eval_kl").stop(log) == ""


@pytest.mark.parametrize(
    "kind",
    ["beside a parent", "weights"]
    + [pytest.param(kind, marks=pytest.mark.slow) for kind in ("adapter", "merged")],
)
def test_the_best_step_is_published_and_not_the_last(
    tiny: Path, rows: Path, tmp_path: Path, kind: str
) -> None:
    """Of a run that stops at each step, the step's own model is what the long run publishes."""
    lora = {"train": {"learning_rate": 0.3}} if kind == "weights" else {"lora": {"r": 4}}
    lora |= {"save": "merged"} if kind == "merged" else {}
    stages = [{"name": "sft", **lora, "early_stopping": {}}]
    if kind == "beside a parent":
        first = {"name": "first", "lora": {"r": 2}, "train": {"max_steps": 1}}
        second = {"model": "stage:first", "kind": "preference", "train": {"learning_rate": 0.3}}
        stages = [first, {**stages[0], **second}]
    recipe = write(tmp_path, tiny, rows, *stages)
    folder = run(recipe)
    metrics = read_run(folder)["metrics"]
    best, loss = lowest(folder)
    assert metrics["published_step"] == best < metrics["steps"] == 6
    assert metrics["best"] == {"metric": "eval_loss", "value": loss}
    assert metrics["validation"]["eval_loss"] == loss, "of the published step"
    assert metrics["trainable_parameters"] > 0
    paused = run(recipe, f"output_dir={tmp_path / 'to-best'}", f"sft.pause_at_step={best}")
    there = paused.parent / ".sft.partial" / "checkpoints" / f"paused-{best}"
    expected, published = weights(there), weights(folder)
    assert expected.keys() == published.keys()
    assert all(expected[name].equal(published[name]) for name in expected)


def test_a_stage_stops_when_nothing_better_comes_and_again_after_a_kill(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    keys = {"name": "sft", "lora": {"r": 4}, "early_stopping": {"patience": 2}}
    recipe = write(tmp_path, tiny, rows, keys)
    folder = run(recipe)
    metrics = read_run(folder)["metrics"]
    best, _ = lowest(folder)
    assert metrics["steps"] == best + 2 < 6 and metrics["published_step"] == best
    assert metrics["stopped"].startswith("2 measurements of eval_loss since step")
    # Killed at the stop: its checkpoint is there, and no step is taken from it.
    again = f"output_dir={tmp_path / 'again'}"
    run(recipe, again, f"sft.pause_at_step={best + 2}")
    resumed = run(recipe, again)
    assert read_run(resumed)["metrics"]["steps"] == best + 2
    assert weights(resumed)["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"].equal(
        weights(folder)["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"]
    )


def test_a_pause_does_not_change_the_choice(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """It measures a step that the recipe doesn't."""
    train = {"eval_steps": 2, "learning_rate": 0.5}
    keys = {"name": "sft", "lora": {"r": 4}, "train": train, "early_stopping": {}}
    recipe = write(tmp_path, tiny, rows, keys)
    again = f"output_dir={tmp_path / 'again'}"
    run(recipe, again, "sft.pause_at_step=3")
    runs = [run(recipe), run(recipe, again)]
    logs = [[row["step"] for row in log(folder) if "eval_loss" in row] for folder in runs]
    assert logs == [[2, 4, 6], [2, 4, 6]]
    steps = [read_run(folder)["metrics"]["published_step"] for folder in runs]
    assert steps[0] == steps[1]


def test_the_best_step_is_kept_between_two_checkpoints(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    """transformers alone would publish the last step: of the best one it has no checkpoint."""
    train = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 6}
    folder = run(write(tmp_path, tiny, rows, {"name": "sft", "lora": {"r": 4}, "train": train}))
    best, loss = lowest(folder)
    metrics = read_run(folder)["metrics"]
    assert metrics["published_step"] == best < 6
    assert metrics["best"] == {"metric": "eval_loss", "value": loss}


@pytest.mark.slow
def test_other_keys_of_transformers_do_not_choose_beside_the_stage(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    """Its own best step by another figure would be saved in place of ours, and ours deleted."""
    train = {"save_strategy": "best", "metric_for_best_model": "loss/think", "save_total_limit": 1}
    keys = {"name": "sft", "lora": {"r": 4}, "train": {**train, "greater_is_better": True}}
    folder = run(write(tmp_path, tiny, rows, {**keys, "early_stopping": {}}))
    assert read_run(folder)["metrics"]["published_step"] == lowest(folder)[0] < 6


def test_the_loss_of_a_mode_is_better_if_it_is_lower_for_transformers_keys_too(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    train = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 6}
    train |= {"metric_for_best_model": "loss/think"}
    folder = run(write(tmp_path, tiny, rows, {"name": "sft", "lora": {"r": 4}, "train": train}))
    best = lowest(folder, "eval_loss/think")
    assert read_run(folder)["metrics"]["published_step"] == best[0] < 6


def test_a_choice_by_margin_takes_the_highest(tiny: Path, rows: Path, tmp_path: Path) -> None:
    keys = {"name": "apo", "kind": "preference", "lora": {"r": 4}}
    early = {"metric": "rewards/margins/think"}
    folder = run(write(tmp_path, tiny, rows, {**keys, "early_stopping": early}))
    name = "eval_rewards/margins/think"
    highest = max((row[name], -row["step"]) for row in log(folder) if name in row)
    assert read_run(folder)["metrics"]["best"] == {"metric": name, "value": highest[0]}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"early_stopping": {"metric": "loss/thnk"}}, "expected loss, loss/MODE"),
        ({"early_stopping": {"patience": 0}}, "patience: expected 1 or more"),
        ({"early_stopping": {"metric": "rewards/margins"}}, "an sft stage has no pairs"),
        (
            {
                "early_stopping": {"metric": "loss/think"},
                "train": {"lr_scheduler_type": "reduce_lr_on_plateau"},
            },
            "keeps the best step by loss for this schedule",
        ),
        ({"early_stopping": {}, "train": {"eval_strategy": "no"}}, "set train.eval_strategy"),
        ({"early_stopping": {"metric": "retain/sums/think"}}, "expected that block with every"),
        (
            {"early_stopping": {}, "train": {"load_best_model_at_end": True}},
            "chooses too: remove one of them",
        ),
    ],
)
def test_a_choice_that_nothing_measures_is_refused(
    tiny: Path, rows: Path, tmp_path: Path, keys: dict[str, Any], words: str
) -> None:
    recipe = write(tmp_path, tiny, rows, {"name": "sft", "lora": {"r": 4}, **keys})
    with pytest.raises(ConfigError, match=words):
        load_recipe(recipe, [])


def test_a_figure_that_is_not_measured_is_refused_at_the_first_evaluation(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    early = {"metric": "loss/source/other"}
    recipe = write(tmp_path, tiny, rows, {"name": "sft", "lora": {"r": 4}, "early_stopping": early})
    with pytest.raises(
        TrainingError, match=r"loss/source/other, isn't measured here; there are: .*loss"
    ):
        run(recipe)
