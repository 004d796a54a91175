"""Two CPU processes that share each row train as one process with whole rows does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dualign import engine
from dualign.recipe import load_recipe
from dualign.rundir import read_run
from tests import processes

# One step of SGD without clipping changes the weights by the gradient.
GRADIENT = {"optim": "sgd", "max_steps": 1, "lr_scheduler_type": "constant", "max_grad_norm": 1e9}
FOUR_STEPS = {"max_steps": 4, "learning_rate": 1e-2}
TRAIN = {
    "learning_rate": 1.0,
    "logging_steps": 1,
    "save_steps": 2,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 3,
}


def launcher(ground: Path, zero: int) -> Path:
    """The file that ships, for one group of two processes on CPUs."""
    path = processes.on_cpu("ulysses", ground)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    sizes = {"sp_size": 2, "dp_replicate_size": 1}
    config["parallelism_config"] |= {f"parallelism_config_{key}": n for key, n in sizes.items()}
    config["deepspeed_config"] |= {"zero_stage": zero, "zero3_init_flag": zero == 3}
    path = ground / f"ulysses-{zero}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def write_recipe(ground: Path, name: str, *, kind: str = "sft", **keys: Any) -> Path:
    pairs = kind == "preference"
    data = {"sources": [{"path": str(ground / ("pairs.jsonl" if pairs else "train.jsonl"))}]}
    data |= {"max_tokens": 256, **({"packing": "none"} if pairs else {})}
    data |= keys.pop("data", {})
    train = TRAIN | keys.pop("train", {})
    stage = {"name": "stage", "kind": kind, "model": str(ground / "model"), "data": data}
    path = ground / f"{name}.yaml"
    stages = [{**stage, "train": train, **keys}]
    path.write_text(json.dumps({"output_dir": str(ground / name), "seed": 3, "stages": stages}))
    return path


def shared(ground: Path, name: str, *, zero: int, **keys: Any) -> Path:
    """The run directory of a stage that two processes trained together."""
    recipe = write_recipe(ground, name, **keys)
    log = ground / f"{name}.log"
    processes.Fork("run", str(recipe), log=log, launcher=launcher(ground, zero)).finish()
    return ground / name / "stage"


def alone(ground: Path, name: str, **keys: Any) -> Path:
    return engine.run(load_recipe(write_recipe(ground, name, **keys), []), say=lambda _: None)[0]


def figures(folder: Path) -> list[Mapping[str, float]]:
    """What was logged of each step, without the clock; rows are padded to a multiple of the processes."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    clock = ("runtime", "per_second", "num_tokens", "total_flos")
    return [
        {key: value for key, value in line.items() if not key.endswith(clock)} for line in lines
    ]


def assert_same_changes(ground: Path, ours: Path, theirs: Path, *, bound: float) -> None:
    """Weights moved alike: the difference of the changes is at most `bound` of them."""
    first, *rest = (
        load_file(folder / "model.safetensors") for folder in (ground / "model", ours, theirs)
    )
    a, b = (
        torch.cat([(weights[name] - first[name]).flatten() for name in first]).double()
        for weights in rest
    )
    assert a.norm() > 0
    assert float((a - b).norm() / b.norm()) <= bound
    assert float(torch.nn.functional.cosine_similarity(a, b, dim=0)) >= 0.99999


@pytest.mark.usefixtures("deepspeed")
def test_loss_and_gradient_are_those_of_whole_rows(ground: Path) -> None:
    """Packed rows of several documents, both modes, ZeRO-3, labels that the cut separates from their position."""
    theirs = alone(ground, "whole", train=GRADIENT)
    ours = shared(ground, "shared", zero=3, train=GRADIENT)
    for line, expected in zip(figures(ours), figures(theirs), strict=True):
        assert line == pytest.approx(expected, rel=1e-5)
    assert {"loss/think", "loss/no_think", "grad_norm"} <= set(figures(ours)[0])
    assert_same_changes(ground, ours, theirs, bound=1e-5)
    checks = read_run(ours)["checks"]
    assert checks["reload_max_logit_difference"] <= 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("deepspeed")
@pytest.mark.parametrize("keys", [{}, {"lora": {"r": 4}, "save": "merged"}], ids=["full", "lora"])
@pytest.mark.parametrize("zero", [2, 3])
def test_four_clipped_steps_are_those_of_whole_rows(
    ground: Path, zero: int, keys: dict[str, Any]
) -> None:
    name = f"four-{zero}-{len(keys)}"
    theirs = alone(ground, f"{name}-whole", train=FOUR_STEPS, **keys)
    ours = shared(ground, name, zero=zero, train=FOUR_STEPS, **keys)
    for line, expected in zip(figures(ours), figures(theirs), strict=True):
        assert line == pytest.approx(expected, rel=1e-4)
    assert_same_changes(ground, ours, theirs, bound=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("deepspeed")
def test_held_out_rows_are_computed_whole(ground: Path) -> None:
    """Each by one process; the losses are those of one process with all of them."""
    train = GRADIENT | {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 1}
    keys = {"train": train, "data": {"validation_rows": 10}}
    theirs, ours = (
        next(line for line in figures(folder) if "eval_loss" in line)
        for folder in (alone(ground, "held", **keys), shared(ground, "held-2", zero=2, **keys))
    )
    losses = {key for key in theirs if key.startswith("eval_loss")}
    assert {"eval_loss/think", "eval_loss/no_think"} < losses
    for key in losses:
        assert ours[key] == pytest.approx(theirs[key], rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("deepspeed")
@pytest.mark.parametrize(
    ("zero", "keys"),
    [
        (2, {"reference": "cached"}),
        (3, {"reference": "cached"}),
        (2, {"lora": {"r": 4}, "save": "merged"}),
        (2, {"train": {"loss_type": "simpo", "beta": 2.0}}),
    ],
    ids=["zero2", "zero3", "lora", "simpo"],
)
def test_pairs_that_are_shared_give_the_same_loss_and_gradient(
    ground: Path, zero: int, keys: dict[str, Any]
) -> None:
    """APO with a cached reference, or the adapter's base; SimPO without one. A part may have no label."""
    name = f"pairs-{zero}-{'-'.join(sorted(keys))}"
    keys = {"kind": "preference", **keys, "train": GRADIENT | keys.get("train", {})}
    theirs = alone(ground, f"{name}-whole", **keys)
    ours = shared(ground, name, zero=zero, **keys)
    for line, expected in zip(figures(ours), figures(theirs), strict=True):
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert_same_changes(ground, ours, theirs, bound=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("deepspeed")
@pytest.mark.parametrize("zero", [2, 3])
def test_a_killed_run_goes_on_to_the_same_bits(ground: Path, zero: int) -> None:
    """Within an epoch, which transformers' own way can't resume."""
    keys = {"train": FOUR_STEPS}
    calm = shared(ground, f"calm-{zero}", zero=zero, **keys)
    recipe = write_recipe(ground, f"rough-{zero}", **keys)
    rough = ground / f"rough-{zero}" / "stage"
    mark = rough.with_name(".stage.partial") / "checkpoints" / "checkpoint-2" / "complete"
    log = ground / f"rough-{zero}.log"
    run = processes.Fork("run", str(recipe), log=log, launcher=launcher(ground, zero))
    processes.wait_until(lambda: mark.exists() or not run.runs())
    run.kill()
    assert mark.exists()
    shared(ground, f"rough-{zero}", zero=zero, **keys)
    assert figures(rough)[:-1] == figures(calm)[:-1]
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (rough, calm))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
