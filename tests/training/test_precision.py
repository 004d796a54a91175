"""The types that a stage is trained in, by device; on other devices than this one as far as arguments go."""

import json
from pathlib import Path
from typing import Any

import pytest
from trl import DPOConfig, SFTConfig

from dualign import engine
from dualign.cost.stage_shape import training_shape
from dualign.data.config import DataConfig, SourceConfig
from dualign.errors import ConfigError
from dualign.models.device import Device, this_device
from dualign.preference.config import PreferenceStage
from dualign.recipe import load_recipe
from dualign.sft.config import SFTStage
from dualign.training.adapter import AdapterConfig
from dualign.training.config import TrainingStage
from dualign.training.precision import arithmetic, in_words, resolved
from dualign.training.trainer import trainer_arguments

CPU, MPS = Device(kind="cpu"), Device(kind="mps")
TURING, AMPERE = Device(kind="cuda"), Device(kind="cuda", bfloat16=True)
XPU = Device(kind="xpu", bfloat16=True)
LORA = AdapterConfig(r=4)
DATA = DataConfig(sources=(SourceConfig(path="rows.jsonl"),))


def stage(**keys: Any) -> TrainingStage:
    return SFTStage(name="sft", model="model", data=DATA, **keys)


def types(device: Device, **keys: Any) -> tuple[str, str]:
    settled = resolved(stage(**keys), device)
    assert resolved(settled, CPU) == resolved(settled, AMPERE) == settled  # settled once
    return settled.dtype, arithmetic(settled)


@pytest.mark.parametrize(
    ("device", "keys", "expected"),
    [
        (CPU, {}, ("float32", "float32")),
        (CPU, {"lora": LORA}, ("float32", "float32")),
        (CPU, {"train": {"bf16": True}}, ("float32", "bfloat16")),
        (CPU, {"dtype": "bfloat16", "lora": LORA}, ("bfloat16", "bfloat16")),
        (MPS, {"lora": LORA}, ("float32", "float32")),
        (AMPERE, {}, ("float32", "bfloat16")),
        (AMPERE, {"lora": LORA}, ("bfloat16", "bfloat16")),
        (AMPERE, {"lora": LORA, "quantization": "nf4"}, ("bfloat16", "bfloat16")),
        (AMPERE, {"lora": LORA, "train": {"bf16": True}}, ("bfloat16", "bfloat16")),
        (AMPERE, {"lora": LORA, "train": {"fp16": True}}, ("float32", "float16")),
        (AMPERE, {"lora": LORA, "train": {"bf16": False}}, ("float32", "float32")),
        (AMPERE, {"dtype": "float32", "lora": LORA}, ("float32", "float32")),
        (AMPERE, {"dtype": "bfloat16", "lora": LORA}, ("bfloat16", "bfloat16")),
        (XPU, {"lora": LORA}, ("bfloat16", "bfloat16")),
        (TURING, {}, ("float32", "float16")),
        (TURING, {"lora": LORA}, ("float32", "float16")),
        (TURING, {"lora": LORA, "quantization": "nf4"}, ("float32", "float16")),
        (TURING, {"dtype": "bfloat16", "lora": LORA}, ("bfloat16", "bfloat16")),
    ],
    ids=str,
)
def test_types_by_device(device: Device, keys: dict[str, Any], expected: tuple[str, str]) -> None:
    assert types(device, **keys) == expected


@pytest.mark.parametrize("engine_name", ["DEEPSPEED", "FSDP"])
def test_an_engine_that_shards_gets_float32_weights_and_casts_them_itself(
    tmp_path: Path, engine_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = tmp_path / "launch.yaml"
    launch.write_text(f"distributed_type: {engine_name}\nmixed_precision: bf16\n")
    sharded = ("float32", "bfloat16")
    assert types(AMPERE, lora=LORA, launch=str(launch)) == sharded
    launch.write_text("distributed_type: MULTI_GPU\n")
    assert types(AMPERE, lora=LORA, launch=str(launch)) == ("bfloat16", "bfloat16")
    monkeypatch.setenv(f"ACCELERATE_USE_{engine_name}", "true")  # inside of such a launch
    assert types(AMPERE, lora=LORA) == sharded


def test_the_launchers_fp16_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = tmp_path / "launch.yaml"
    launch.write_text("distributed_type: MULTI_GPU\nmixed_precision: fp16\n")
    assert types(AMPERE, lora=LORA, launch=str(launch)) == ("float32", "float16")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # accelerate's default, as TRL reads it
    assert types(AMPERE, lora=LORA) == ("bfloat16", "bfloat16")


def test_cost_is_that_of_the_resolved_types() -> None:
    shapes = {
        name: training_shape(resolved(stage(**keys), AMPERE), longest=64)
        for name, keys in {"lora": {"lora": LORA}, "full": {}}.items()
    }
    assert (shapes["lora"].dtype, shapes["lora"].master_weights) == ("bfloat16", False)
    assert (shapes["full"].dtype, shapes["full"].master_weights) == ("bfloat16", True)
    assert {shape.device for shape in shapes.values()} == {"cuda"}
    half = training_shape(resolved(stage(lora=LORA), TURING), longest=64)
    assert (half.dtype, half.autocast) == ("float16", True)


def test_the_plan_says_what_auto_is_here_and_on_a_gpu() -> None:
    assert in_words(stage(lora=LORA), CPU) == (
        "dtype: auto is float32 weights and float32 arithmetic on this CPU; "
        "bfloat16 and bfloat16 on a GPU with bfloat16"
    )
    assert in_words(stage(), AMPERE).endswith(
        "float32 weights and bfloat16 arithmetic on this cuda device"
    )


def test_use_cpu_settles_auto_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert this_device(use_cpu=True) == CPU
    assert resolved(stage(train={"use_cpu": True})).dtype == "float32"


@pytest.mark.parametrize(
    ("device", "keys", "expected"),
    [
        (CPU, {}, {"use_cpu": True, "bf16": False, "fp16": False, "dataloader_pin_memory": False}),
        (MPS, {}, {"use_cpu": False, "bf16": False, "fp16": False, "dataloader_pin_memory": False}),
        (
            TURING,
            {},
            {"use_cpu": False, "bf16": False, "fp16": True, "dataloader_pin_memory": True},
        ),
        (
            AMPERE,
            {},
            {"use_cpu": False, "bf16": True, "fp16": False, "dataloader_pin_memory": True},
        ),
        (
            AMPERE,
            {"train": {"dataloader_pin_memory": False, "tf32": True, "optim": "sgd"}},
            {"dataloader_pin_memory": False, "tf32": True, "optim": "sgd", "bf16": True},
        ),
    ],
)
def test_arguments_by_device(
    device: Device, keys: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    settled = resolved(stage(**keys), device)
    arguments = trainer_arguments(settled, settled.train, tmp_path, 0, device=device)  # type: ignore[attr-defined]
    assert {name: arguments[name] for name in expected} == expected
    assert not {"tf32", "optim", "torch_compile", "gradient_checkpointing"} & (
        set(arguments) - set(expected)
    ), "TRL's defaults"


@pytest.mark.parametrize("config", [SFTConfig, DPOConfig])
def test_trls_defaults_stay_but_for_those_that_the_page_lists(
    config: type[SFTConfig], tmp_path: Path
) -> None:
    settled = resolved(stage(), CPU)
    ours = trainer_arguments(settled, settled.train, tmp_path, 0, device=CPU)  # type: ignore[attr-defined]
    theirs = config(output_dir=ours["output_dir"], use_cpu=True, seed=0, data_seed=0)
    mine = config(**ours)
    other = {field for field, value in vars(mine).items() if value != vars(theirs)[field]}
    other -= {"mixed_precision", "distributed_state"}  # not arguments
    page = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text()
    assert other - {"disable_tqdm"} == {  # that one depends on the terminal
        "bf16",
        "logging_nan_inf_filter",
        "max_length",
        "prediction_loss_only",
        "remove_unused_columns",
        "save_total_limit",
    }
    assert not [name for name in other if f"| `{name}`" not in page]
    for name in ("gradient_checkpointing", "optim", "tf32", "torch_compile", "logging_steps"):
        assert getattr(mine, name) == getattr(theirs, name) and f"| `{name}`" in page


def recipe_of(folder: Path, model: Path, rows: Path, **keys: Any) -> Path:
    data = {"sources": [{"path": str(rows / "train.jsonl")}], "max_tokens": 128}
    train = {"max_steps": 1, "per_device_train_batch_size": 1, "save_strategy": "no"}
    entry = {"name": "sft", "kind": "sft", "model": str(model), "data": data, "train": train}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"output_dir": str(folder / "out"), "stages": [entry | keys]}))
    return path


def test_run_json_says_the_types_and_another_explicit_type_is_refused_not_skipped(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    """`auto` and float32 have one fingerprint: what a GPU trained in bfloat16 must not pass as float32."""
    path = recipe_of(tmp_path, tiny, rows)
    out = engine.run(load_recipe(path, []), say=lambda _: None)[0]
    record = json.loads((out / "run.json").read_text())
    assert record["config"]["dtype"] == "auto"
    assert (record["metrics"]["dtype"], record["metrics"]["arithmetic"]) == ("float32", "float32")

    stated = load_recipe(recipe_of(tmp_path, tiny, rows, dtype="float32"), [])
    assert [status.state for status in engine.statuses(stated, remember=False)] == ["done"]
    engine.require_runnable(stated, engine.statuses(stated, remember=False))

    record["metrics"]["dtype"] = "bfloat16"  # as a GPU would have trained it
    (out / "run.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"was trained with bfloat16 weights .* now says float32"):
        engine.run(stated, say=lambda _: None)
    engine.run(load_recipe(path, ["sft.dtype=auto"]), say=lambda _: None)  # skipped


def test_both_kinds_of_training_stage_have_auto_as_default() -> None:
    data = DataConfig(sources=DATA.sources, packing="none")
    assert stage().dtype == PreferenceStage(name="apo", model="model", data=data).dtype == "auto"


def test_bfloat16_weights_are_autocast_where_that_is_fast() -> None:
    """Without it PEFT's float32 adapter would be multiplied in float32."""
    for device, autocast in ((AMPERE, True), (TURING, False), (CPU, False)):
        settled = resolved(stage(dtype="bfloat16", lora=LORA), device)
        assert settled.train["bf16"] is autocast  # type: ignore[attr-defined]
