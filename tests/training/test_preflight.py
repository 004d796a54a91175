"""What can't train right on this machine, or from this start, is said before the first step."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl import SFTConfig

from dualign import engine
from dualign.errors import ConfigError, DualignError
from dualign.recipe import load_recipe
from dualign.training import preflight
from dualign.training.argument_values import scheduler_keys
from dualign.training.arguments import _enum_values


def write_recipe(folder: Path, model: Path, rows: Path, **keys: Any) -> Path:
    """A recipe of one SFT or preference stage of two steps."""
    file = rows / ("pairs.jsonl" if keys.get("kind") == "preference" else "train.jsonl")
    data: dict[str, Any] = {"sources": [{"path": str(file)}], "max_tokens": 128}
    if keys.get("kind") == "preference":
        data["packing"] = "none"
    train = {"max_steps": 2, "per_device_train_batch_size": 1, "save_strategy": "no"}
    train |= {"disable_tqdm": True, **keys.pop("train", {})}
    data |= keys.pop("data", {})
    stage = {"name": "stage", "kind": "sft", "model": str(model), "data": data, "train": train}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"output_dir": str(folder / "out"), "stages": [{**stage, **keys}]}))
    return path


def run(path: Path) -> Path:
    return engine.run(load_recipe(path, []), say=lambda _: None)[0]


def refusal(path: Path) -> str:
    """The message with which `run` and `plan` refuse before anything is started."""
    recipe = load_recipe(path, [])
    with pytest.raises(ConfigError) as caught:
        engine.require_runnable(recipe, engine.statuses(recipe, remember=False))
    with pytest.raises(DualignError) as again:
        run(path)
    assert str(again.value) == str(caught.value)
    assert not list((path.parent / "out").glob(".*.partial"))
    return str(caught.value)


def share_moved(before: Path, after: Path, dtype: torch.dtype) -> float:
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    moved = [
        (old[name].to(dtype) != new[name]).float().mean() for name in new if new[name].ndim == 2
    ]
    return float(torch.stack(moved).mean())


def test_bfloat16_weights_that_would_not_move_are_refused(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    message = refusal(
        write_recipe(tmp_path, tiny, rows, dtype="bfloat16", train={"learning_rate": 1e-6})
    )
    assert "stage stage: dtype: bfloat16 weights at learning_rate 1e-06" in message
    assert "set dtype: float32 and train.bf16: true" in message
    assert "rounded_updates: true" in message


def test_the_refusal_of_bfloat16_is_right_and_its_way_out_too(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    """Measured: what rounding leaves at 1e-6, and float32 weights under bfloat16 autocast."""
    shares = []
    for name, keys in (
        ("rounded", {"dtype": "bfloat16", "rounded_updates": True}),
        ("float32", {"dtype": "float32"}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        train = {"learning_rate": 1e-6, "lr_scheduler_type": "constant", "bf16": True}
        out = run(write_recipe(folder, tiny, rows, train=train, **keys))
        shares.append(share_moved(tiny, out, getattr(torch, str(keys["dtype"]))))
    assert shares[0] < 0.05
    assert shares[1] > 0.99


@pytest.mark.parametrize(
    ("keys", "refused"),
    [
        ({"dtype": "float16", "train": {"learning_rate": 1e-3}}, True),
        ({"dtype": "bfloat16"}, True),  # TRL's default, 2e-5
        ({"dtype": "bfloat16", "kind": "preference"}, True),
        ({"dtype": "bfloat16", "train": {"learning_rate": 1e-3}}, False),
        ({"dtype": "bfloat16", "lora": {"r": 2}}, False),
        ({"dtype": "bfloat16", "launch": "zero2.yaml"}, False),
        ({"dtype": "bfloat16", "launch": "ddp.yaml"}, True),
        (
            {
                "dtype": "bfloat16",
                "train": {"optim": "adamw_torch_8bit", "optim_args": "bf16_stochastic_round=True"},
            },
            False,
        ),
    ],
)
def test_which_weights_are_rounded_away(
    tiny: Path, rows: Path, tmp_path: Path, keys: dict[str, Any], *, refused: bool
) -> None:
    (tmp_path / "zero2.yaml").write_text("distributed_type: DEEPSPEED\n")
    (tmp_path / "ddp.yaml").write_text("distributed_type: MULTI_CPU\n")
    recipe = load_recipe(write_recipe(tmp_path, tiny, rows, **keys), [])
    stages = engine.statuses(recipe, remember=False)
    assert any(": dtype: " in issue for issue in all_issues(recipe, stages)) == refused


def all_issues(recipe: Any, stages: list[Any]) -> list[str]:
    try:
        engine.require_runnable(recipe, stages)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def test_several_gpus_need_a_launcher_or_a_choice(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """TRL would refuse nn.DataParallel once the model is loaded."""
    stage = load_recipe(write_recipe(tmp_path, tiny, rows), []).stages[0].config
    [(key, message)] = preflight._several_gpus(stage, 8)
    assert (
        key == "launch" and "8 GPUs are in sight" in message and "CUDA_VISIBLE_DEVICES=0" in message
    )
    assert not list(preflight._several_gpus(stage, 1))
    assert not list(preflight._several_gpus(replace(stage, launch="zero2.yaml"), 8))


def test_a_finished_run_of_rounded_weights_stays_finished(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    meant = write_recipe(tmp_path, tiny, rows, dtype="bfloat16", rounded_updates=True)
    run(meant)
    without = write_recipe(tmp_path, tiny, rows, dtype="bfloat16")
    recipe = load_recipe(without, [])
    assert [status.state for status in engine.statuses(recipe, remember=False)] == ["done"]
    assert run(without).name == "stage"


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("preference", "label_smoothing", 0.1),
        ("preference", "label_smoothing_factor", 0.1),
        ("sft", "label_smoothing_factor", 0.1),
        ("preference", "discopop_tau", 0.1),
        ("preference", "f_alpha_divergence_coef", 0.6),
        ("preference", "ref_model_mixup_alpha", 0.5),
        ("sft", "liger_kernel_config", {"rope": True}),
        ("sft", "load_best_model_at_end", True),
        ("sft", "optim_target_modules", "all-linear"),
    ],
)
def test_an_argument_without_effect_is_refused_by_name(
    tiny: Path, rows: Path, tmp_path: Path, kind: str, name: str, value: object
) -> None:
    message = refusal(write_recipe(tmp_path, tiny, rows, kind=kind, train={name: value}))
    assert f"stage stage: train.{name}: has no effect here: " in message


def test_the_values_that_change_nothing_are_taken(tiny: Path, rows: Path, tmp_path: Path) -> None:
    train = {"label_smoothing": 0.0, "discopop_tau": 0.05, "load_best_model_at_end": False}
    recipe = load_recipe(write_recipe(tmp_path, tiny, rows, kind="preference", train=train), [])
    engine.require_runnable(recipe, engine.statuses(recipe, remember=False))


@pytest.mark.parametrize("optimizer", sorted(_enum_values()["OptimizerNames"]))
def test_an_optimizer_is_refused_if_transformers_cannot_make_it(
    optimizer: str, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    targets = "all-linear" if optimizer.startswith(("galore", "apollo")) else None
    train = {"optim": optimizer, "optim_target_modules": targets}
    settings = SFTConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, **train)
    try:
        Trainer.get_optimizer_cls_and_kwargs(settings, model)
        made = True
    except (ImportError, ValueError):
        made = False
    issues = preflight.issues(stage_of_recipe(write_recipe(tmp_path, tiny, rows, train=train)))
    assert made == (not issues), issues
    assert all(key == "train.optim" and " needs the package " in text for key, text in issues)


def stage_of_recipe(path: Path) -> Any:
    return load_recipe(path, []).stages[0].config


def test_every_tracker_of_transformers_is_known() -> None:
    assert set(preflight._TRACKERS) == set(INTEGRATION_TO_CALLBACK)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"train": {"report_to": "wandb"}}, "train.report_to: wandb isn't installed: pip install"),
        ({"train": {"report_to": ["dvclive"]}}, "train.report_to: dvclive isn't installed"),
        ({"train": {"report_to": "wanbd"}}, "unknown value 'wanbd' (did you mean 'wandb'?)"),
        ({"train": {"tf32": True}}, "--tf32 requires Ampere"),
        ({"train": {"activation_offloading": True}}, "from a GPU, and there is none"),
        ({"train": {"ddp_backend": "gloo"}}, "train.ddp_backend: is for several processes"),
        ({"attn_implementation": "flash_attention_2"}, "needs the package flash-attn"),
        ({"attn_implementation": "flex_attention"}, "flex_attention doesn't train on a CPU"),
    ],
)
def test_what_this_machine_lacks_is_said_before_anything_starts(
    tiny: Path, rows: Path, tmp_path: Path, keys: dict[str, Any], expected: str
) -> None:
    if torch.cuda.is_available() or find_spec("wandb") or find_spec("dvclive"):
        pytest.skip("this machine has it")
    assert expected in refusal(write_recipe(tmp_path, tiny, rows, **keys))


@pytest.mark.parametrize(
    "train", [{"router_aux_loss_coef": 0.1}, {"optim": "sgd", "optim_args": "momentum=x"}]
)
def test_what_a_library_refuses_of_the_model_is_one_message_before_the_first_step(
    tiny: Path, rows: Path, tmp_path: Path, train: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="stage stage: refused before the first step: "):
        run(write_recipe(tmp_path, tiny, rows, train=train))


def test_the_keys_of_each_scheduler_are_those_that_transformers_takes() -> None:
    """Made with every key that we allow, at a value that each takes, and refused with another."""
    values = {"warmup_type": "cosine", "decay_type": "linear", "mode": "min", "factor": 0.5}
    values |= {"threshold_mode": "rel", "smooth": True, "lr_end": 0.5}
    for name in _enum_values()["SchedulerType"]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        keys = {key: values.get(key, 1) for key in scheduler_keys()[name]}
        keys.pop("min_lr", None) if "min_lr_rate" in keys else None  # one of the two
        get_scheduler(name, optimizer, 1, 10, keys)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("polynomial", {"lr_end": 1.0}),
        ("polynomial", {"power": "x"}),
        ("cosine", {"num_cycles": "many"}),
        ("warmup_stable_decay", {"num_decay_steps": 1, "warmup_type": "nonsense"}),
        ("cosine_with_min_lr", {"min_lr": 1e-5, "min_lr_rate": 0.1}),
    ],
)
def test_a_value_of_a_scheduler_is_tried_before_the_first_step(
    tiny: Path, rows: Path, tmp_path: Path, kind: str, values: dict[str, Any]
) -> None:
    train = {"lr_scheduler_type": kind, "lr_scheduler_kwargs": values}
    message = refusal(write_recipe(tmp_path, tiny, rows, train=train))
    assert f"train.lr_scheduler_kwargs: {kind} with {values}: " in message
