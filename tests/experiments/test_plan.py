"""The file of an experiment: which runs it means, and what is refused before anything starts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualign.cli.main import main
from dualign.errors import ConfigError, EvaluationError
from dualign.experiments.config import read_experiment
from dualign.experiments.halving import RungValues, better_settings
from dualign.experiments.measures import Measure, evaluation_value, training_value
from dualign.experiments.runs import Experiment, plan_runs, short_keys
from dualign.recipe import load_recipe

Write = Callable[..., Path]
BETA = {"apo.train.beta": [0.1, 0.5]}


def plan(file: Path, *overrides: str) -> Experiment:
    return plan_runs(read_experiment(file, overrides), remember=False)


def problem(file: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        plan(file, *overrides)
    return str(error.value)


def test_a_grid_is_every_combination_and_a_run_a_valid_recipe(write: Write) -> None:
    experiment = plan(write(grid={**BETA, "apo.seed": [0, 1]}))
    names = ["beta=0.1_seed=0", "beta=0.1_seed=1", "beta=0.5_seed=0", "beta=0.5_seed=1"]
    assert [run.name for run in experiment.runs] == names
    for run in experiment.runs:
        apo = run.recipe.stage("apo")
        assert (apo.config.train["beta"], apo.seed) == tuple(run.point.values())
        assert run.recipe.output_dir == experiment.output_dir / "runs" / run.name
    assert len({run.setting for run in experiment.runs}) == 2
    assert len({run.status("data").fingerprint for run in experiment.runs}) == 1
    assert len({run.status("apo").fingerprint for run in experiment.runs}) == 4


def test_keys_that_vary_together_are_combined_with_the_grid(write: Write) -> None:
    together = [
        {"apo.train.loss_type": "sigmoid", "apo.train.beta": 0.1},
        {"apo.train.loss_type": "ipo", "apo.train.beta": 0.01},
    ]
    experiment = plan(write(runs=together, grid={"apo.seed": [0, 1]}))
    assert [run.label for run in experiment.runs] == [
        "loss_type sigmoid, beta 0.1, seed 0",
        "loss_type sigmoid, beta 0.1, seed 1",
        "loss_type ipo, beta 0.01, seed 0",
        "loss_type ipo, beta 0.01, seed 1",
    ]


def test_overrides_are_the_experiments_or_the_recipes(write: Write) -> None:
    file = write(grid=BETA)
    experiment = plan(file, "apo.train.max_steps=9", "score=apo.margin/think", "name=mine")
    assert experiment.name == "mine" and experiment.score.name == "apo.margin/think"
    assert all(run.recipe.stage("apo").config.train["max_steps"] == 9 for run in experiment.runs)
    assert "set.apo.train.beta: has no effect: the runs set it" in problem(file, "apo.train.beta=1")


def test_values_of_any_type_reach_the_recipe(write: Write) -> None:
    values = [[{"path": "stage:data/pairs.jsonl", "rows": 5, "label": "a: b, c"}]]
    experiment = plan(write(grid={"apo.data.sources": values, **BETA}))
    source = experiment.runs[0].recipe.stage("apo").config.data.sources[0]
    assert (source.rows, source.label) == (5, "a: b, c")
    for run in experiment.runs:
        assert not set(run.name) - set("abcdefghijklmnopqrstuvwxyz0123456789._=-")


def test_shortest_keys_that_differ() -> None:
    assert short_keys(["apo.train.beta", "apo.seed"]) == {
        "apo.train.beta": "beta",
        "apo.seed": "seed",
    }
    keys = ["apo-1.train.beta", "apo-2.train.beta"]
    assert list(short_keys(keys).values()) == keys


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, ["nothing varies"]),
        ({"grid": {"apo.train.beta": 0.1}}, ["grid.apo.train.beta: expected a list"]),
        ({"grid": {"apo.train.beta": []}}, ["grid.apo.train.beta: expected one value at least"]),
        ({"grid": {"apo.train.beta": [0.1, 0.1]}}, ["names a value twice"]),
        (
            {"grid": {"apo.train.betta": [0.1, 0.2]}},
            ["search.yaml:5: grid.apo.train.betta: 0.1: ", "did you mean 'beta'"],
        ),
        ({"grid": {"apoo.train.beta": [1]}}, ["grid.apoo.train.beta", "did you mean 'apo'"]),
        ({"grid": {"apoo.seed": [1]}}, ["no stage or key 'apoo'", "did you mean 'apo'"]),
        ({"grid": {"apo.train.beta": [0.1, -1]}}, ["grid.apo.train.beta: -1: ", "more than 0"]),
        ({"grid": {"output_dir": ["a"]}}, ["grid.output_dir: can't vary: each run has a folder"]),
        ({"grid": {"apo.pause_at_step": [2]}}, ["can't vary: `halving` pauses runs"]),
        (
            {"grid": {"apo.data.num_proc": [1, 2]}},
            ["do the same: apo.data.num_proc changes no stage's result"],
        ),
        ({"grd": BETA}, ["grd: unknown key (did you mean 'grid'?)"]),
        ({"parameters": {"beta": {"values": [1]}}}, ["parameters: unknown key (here: grid"]),
        ({"grid": BETA, "score": "evl.accuracy"}, ["score: 'evl.accuracy'", "did you mean 'eval'"]),
        ({"grid": BETA, "score": "eval.acuracy"}, ["no metric 'acuracy'", "'accuracy'"]),
        ({"grid": BETA, "score": "eval.summs.accuracy"}, ["no task 'summs' (did you mean 'sums'?)"]),
        ({"grid": BETA, "score": "eval.margin"}, ["name the pairs: STAGE.PAIRS.margin"]),
        ({"grid": BETA, "score": "data.loss"}, ["stage data is of kind script"]),
        ({"grid": BETA, "score": "apo.loss"}, ["depends on apo.train.beta", "use apo.margin"]),
        ({"grid": BETA, "score": "apo.eval_rewards/margins"}, ["use apo.margin, in nats"]),
        ({"grid": BETA, "best": "lower"}, ["best: expected one of highest, lowest"]),
        (
            {"grid": BETA, "set": {"apo.train.eval_strategy": "no"}, "score": "apo.margin"},
            ["never measures its held-out rows: set its train.eval_strategy"],
        ),
        (
            {"grid": BETA, "set": {"apo.data.validation_rows": 0, "apo.train.eval_strategy": "no"},
             "score": "apo.margin"},
            ["holds no rows out: set its data.validation_rows"],
        ),
        ({"grid": BETA, "halving": {"stage": "eval", "rungs": [2]}}, ["expected a training stage"]),
        ({"grid": BETA, "halving": {"stage": "apo", "rungs": [6]}}, ["ends at step 6"]),
        ({"grid": BETA, "halving": {"stage": "apo", "rungs": [3, 2]}}, ["expected rising steps"]),
        ({"grid": BETA, "halving": {"stage": "apo", "rungs": [2], "keep": 1}}, ["between 0 and 1"]),
        ({"grid": BETA, "halving": {"stage": "apo", "rung": [2]}}, ["did you mean 'rungs'"]),
        (
            {"grid": BETA, "halving": {"stage": "apo", "rungs": [2], "metric": "loss"}},
            ["halving.metric: its size depends on apo.train.beta"],
        ),
        ({"grid": BETA, "runs": [{"apo.train.beta": 1}]}, ["varies in grid too"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_key(
    write: Write, keys: dict[str, Any], words: list[str]
) -> None:
    message = problem(write(**keys))
    for word in words:
        assert word in message, message


def test_a_recipe_that_is_wrong_by_itself_is_refused_once(write: Write) -> None:
    message = problem(write(grid=BETA, set={"apo.modle": "x"}))
    assert message.count("unknown key (did you mean 'model'?)") == 1


def test_a_recipe_is_no_experiment(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write(grid=BETA).parent / "recipe.yaml"
    assert main(["experiment", str(recipe)]) == 2
    assert "is a recipe; an experiment names one with `recipe:`" in capsys.readouterr().err


def test_under_a_launcher_it_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from dualign.experiments.experiment import run_experiment

    experiment = plan(write(grid=BETA))
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="without a launcher, and give the stages `launch: FILE`"):
        run_experiment(experiment)


def test_a_launched_stage_gets_all_that_its_run_sets(write: Write) -> None:
    """`launch` starts `dualign prefer RECIPE --stage apo OVERRIDES`, which reads the run from these."""
    file = write(grid={"apo.train.beta": [0.1, 0.5], "apo.template": ["dualign", "chatml"]})
    for run in plan(file, "apo.train.max_steps=9").runs:
        again = load_recipe(run.recipe.file, run.recipe.overrides)
        assert again == run.recipe


def test_a_margin_is_in_nats() -> None:
    validation = {"eval_rewards/margins": 0.3, "eval_rewards/margins/think": 0.1, "eval_loss": 0.7}
    assert training_value(validation, "margin", beta=0.1) == pytest.approx(3.0)
    assert training_value(validation, "margin/think", beta=0.5) == pytest.approx(0.2)
    assert training_value(validation, "loss", beta=0.1) == 0.7
    assert training_value(validation, "rewards/accuracies", beta=0.1) is None


def test_a_score_spans_tasks_and_modes() -> None:
    def cell(accuracy: float, tokens: float) -> dict[str, Any]:
        return {"accuracy": accuracy, "think_tokens": {"mean": tokens, "p50": 0.0}}

    tasks = {
        "a": {"think": cell(0.8, 10), "no_think": cell(0.2, 0)},
        "b.c": {"think": cell(0.6, 30), "no_think": cell(0.4, 0)},
    }
    metrics = {"tasks": tasks, "pairs": {"held": {"think": {"margin": 2.5}}}}
    for key, value in (
        ("accuracy", 0.5),
        ("think.accuracy", 0.7),
        ("b.c.accuracy", 0.5),
        ("a.no_think.accuracy", 0.2),
        ("think.think_tokens", 20),
        ("held.think.margin", 2.5),
    ):
        assert evaluation_value(metrics, key, where="m") == pytest.approx(value), key
    with pytest.raises(EvaluationError, match=r"the score d\.accuracy names no task"):
        evaluation_value(metrics, "d.accuracy", where="m")


def test_settings_are_ranked_by_the_mean_of_their_seeds() -> None:
    values = {"lucky": [0.9, 0.1], "steady": [0.6, 0.6], "failed": [], "nan": [float("nan")]}
    higher = Measure(stage="apo", key="margin", lower=False)
    assert better_settings(values, higher, 1) == {"steady"}
    assert better_settings(values, higher, 2) == {"steady", "lucky"}
    lower = Measure(stage="sft", key="loss", lower=True)
    assert better_settings(values, lower, 1) == {"lucky"}


def test_values_of_rungs_stay_with_their_metric(tmp_path: Path) -> None:
    margin, loss = (Measure(stage="apo", key=key, lower=False) for key in ("margin", "loss"))
    RungValues(tmp_path, margin).add("f", 50, 0.5)
    values = RungValues(tmp_path, margin)
    values.add("f", 25, 0.25)
    assert values.get("f", 50) == 0.5 and values.get("g", 50) is None
    assert values.of("f") == [(25, 0.25), (50, 0.5)]
    other = RungValues(tmp_path, loss)
    assert other.get("f", 50) is None
    other.add("f", 50, 0.7)
    assert RungValues(tmp_path, margin).get("f", 50) == 0.5


def test_halving_by_a_task_is_a_metric_of_the_eval_stage(write: Write) -> None:
    halving = {"stage": "apo", "rungs": [2], "metric": "eval.think.accuracy"}
    metric = plan(write(grid=BETA, halving=halving)).metric
    assert metric is not None and (metric.stage, metric.key) == ("eval", "think.accuracy")
    halving["metric"] = "eval.think.acuracy"
    assert "halving.metric: " in problem(write(grid=BETA, halving=halving))


def test_a_key_of_a_missing_stage_is_no_key_of_the_only_one(tmp_path: Path) -> None:
    keys = {"kind": "sft", "name": "sft", "model": "a/b", "output_dir": "out"}
    keys["data"] = {"sources": [{"path": "rows"}]}
    (tmp_path / "sft.yaml").write_text(json.dumps(keys))
    for override in ("sfft.train.learning_rate=1", "sfft.seed=1"):
        with pytest.raises(ConfigError, match=r"no stage or key 'sfft' .did you mean 'sft'"):
            load_recipe(tmp_path / "sft.yaml", [override])
    assert load_recipe(tmp_path / "sft.yaml", ["train.learning_rate=1"]).stages
    with pytest.raises(ConfigError, match="'train'"):
        load_recipe(tmp_path / "sft.yaml", ["trainn.learning_rate=1"])


def test_run_says_what_the_file_of_an_experiment_is(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(grid=BETA)
    assert main(["run", str(file)]) == 2
    words = f"{file}: is an experiment, not a recipe: `dualign experiment {file}` runs it"
    assert words in capsys.readouterr().err
