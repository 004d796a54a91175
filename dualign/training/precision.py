"""The types that a stage is trained in: of the weights (`dtype`), and of the arithmetic (autocast).

`dtype: auto` is settled by the device of the process that trains:

| device | stage | weights | arithmetic |
|---|---|---|---|
| CPU, MPS | any | float32 | float32 |
| GPU with bfloat16 | lora | bfloat16, the adapter float32 | bfloat16 |
| GPU with bfloat16 | every weight, lora with whole tensors (docs/lora.md), or sharded by DeepSpeed or FSDP | float32 | bfloat16 |
| CUDA before Ampere | any | float32 | float16, with loss scaling |

CPUs with units for bfloat16 aren't an exception: a recipe gives the same weights on each of them.
`train.bf16` and `train.fp16` say the arithmetic themselves, on every device.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from dualign.launcher import config_file, launch_settings
from dualign.models.device import Device, this_device
from dualign.training.config import Arithmetic, Dtype, TrainingStage

Stage = TypeVar("Stage", bound=TrainingStage)
_ENGINES = ("DEEPSPEED", "FSDP")


def resolved(stage: Stage, device: Device | None = None) -> Stage:
    """Return the stage with `dtype`, `train.bf16` and `train.fp16` spelled out; idempotent.

    Args:
        device: that of this process if absent.
    """
    train: Mapping[str, Any] = stage.train  # type: ignore[attr-defined]
    dtype, computed = _types(stage, train, device or training_device(stage))
    flags = {"bf16": computed == "bfloat16", "fp16": computed == "float16"}
    return replace(stage, dtype=dtype, train={**train, **flags})  # type: ignore[call-arg]


def training_device(stage: TrainingStage) -> Device:
    """Return the device that this process trains a stage on: a CPU if the stage or its launcher says so."""
    train: Mapping[str, Any] = stage.train  # type: ignore[attr-defined]
    launched = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    launcher = _launch_settings(stage).get("use_cpu")
    return this_device(use_cpu=bool(train.get("use_cpu") or launched or launcher))


def arithmetic(stage: TrainingStage) -> Arithmetic:
    """Return the type in which a resolved stage multiplies matrices."""
    train: Mapping[str, Any] = stage.train  # type: ignore[attr-defined]
    assert stage.dtype != "auto", "expected a resolved stage"
    return "bfloat16" if train["bf16"] else "float16" if train["fp16"] else stage.dtype


def in_words(stage: TrainingStage, device: Device) -> str:
    """Return a line for the plan: what `dtype: auto` is on this device."""
    settled = resolved(stage, device)
    words = f"dtype: auto is {settled.dtype} weights and {arithmetic(settled)} arithmetic on this {_name(device)}"
    if device.kind != "cpu":
        return words
    there = resolved(stage, Device(kind="cuda", bfloat16=True))
    return f"{words}; {there.dtype} and {arithmetic(there)} on a GPU with bfloat16"


def sharding_engine(stage: TrainingStage) -> str | None:
    """Return DEEPSPEED or FSDP if one of them holds the weights; both cast them by themselves."""
    for engine in _ENGINES:
        if os.environ.get(f"ACCELERATE_USE_{engine}", "").lower() == "true":
            return engine
    kind = str(_launch_settings(stage).get("distributed_type")).upper()
    return kind if kind in _ENGINES else None


def _types(
    stage: TrainingStage, train: Mapping[str, Any], device: Device
) -> tuple[Dtype, Arithmetic]:
    """Return the types of the weights and of autocast, float32 for none."""
    stated = _stated(train)
    if stage.dtype != "auto":
        fast = stage.dtype == "bfloat16" and device.bfloat16
        return stage.dtype, stated or ("bfloat16" if fast else "float32")
    if device.kind == "cpu":
        return "float32", stated or "float32"
    usual: Arithmetic = (
        "bfloat16" if device.bfloat16 else "float16" if device.kind == "cuda" else "float32"
    )
    if _launcher_precision(stage) == "fp16":
        usual = "float16"
    computed = stated or usual
    frozen = stage.lora is not None and not stage.lora.needs_float32
    halved = computed == "bfloat16" and frozen and sharding_engine(stage) is None
    return "bfloat16" if halved else "float32", computed


def _stated(train: Mapping[str, Any]) -> Arithmetic | None:
    """Return the arithmetic that `train:` asks for; bf16: false asks for none but the weights' own."""
    if train.get("bf16"):
        return "bfloat16"
    if train.get("fp16"):
        return "float16"
    return "float32" if train.get("bf16") is False else None


def _launcher_precision(stage: TrainingStage) -> str:
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION")
    return str(launched or _launch_settings(stage).get("mixed_precision"))


def _launch_settings(stage: TrainingStage) -> Mapping[str, Any]:
    if stage.launch is None or not Path(config_file(stage.launch)).is_file():
        return {}
    return launch_settings(stage.launch)


def _name(device: Device) -> str:
    return "CPU" if device.kind == "cpu" else f"{device.kind} device"
