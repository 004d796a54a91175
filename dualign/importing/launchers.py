"""How a run was launched: a DeepSpeed file, or accelerate's, as the `launch` of a stage."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualign.config import read_yaml
from dualign.errors import ConfigError
from dualign.importing.draft import Draft

_BY_NAME = re.compile(r"(ds_)?z(ero)?_?(?P<stage>[0-3])(?P<offload>_offload)?(_config)?(_bf16)?")
"""Names of the files that LLaMA-Factory and TRL ship: ds_z3_offload_config.json, zero2.json."""
_KEPT = ("stage", "offload_optimizer", "offload_param", "stage3_gather_16bit_weights_on_model_save")
_SIGNS = ("distributed_type", "compute_environment")


def launch_by_deepspeed(draft: Draft, key: str = "deepspeed") -> None:
    """Write an accelerate file for DeepSpeed's file, or its settings, that `key` names."""
    value = draft.get(key)
    settings = value if isinstance(value, Mapping) else _settings(draft, str(value))
    if settings is None:
        draft.refuse(
            key, f"{value}: no such file: name an accelerate file in launch (docs/distributed.md)"
        )
        return
    zero = settings.get("zero_optimization") or {}
    stage = zero.get("stage", 0)
    name = f"{draft.recipe['name']}-launch.yaml"
    draft.files[name] = _accelerate_text(zero, _precision(draft))
    dropped = [f"zero_optimization.{other}" for other in zero if other not in _KEPT]
    left = f"; left to DeepSpeed's defaults: {', '.join(dropped)}" if dropped else ""
    guess = "" if isinstance(value, Mapping) or draft.find(str(value)) else " (by the file's name)"
    says = (
        f"ZeRO-{stage}{guess} as an accelerate file, one process for each GPU; a step has processes x "
        f"per_device_train_batch_size x gradient_accumulation_steps rows, as there{left}"
    )
    draft.change(key, "launch", name, says)


def _settings(draft: Draft, name: str) -> Mapping[str, Any] | None:
    """Return DeepSpeed's settings: of the file, or of one that isn't here by its well-known name."""
    place = draft.find(name)
    if place is not None and place.is_file():
        try:
            value = json.loads(place.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{place}: isn't JSON, as DeepSpeed's files are: {error}") from None
        if not isinstance(value, Mapping):
            raise ConfigError(f"{place}: expected an object with zero_optimization")
        return value
    known = _BY_NAME.fullmatch(Path(name).stem)
    if known is None:
        return None
    zero: dict[str, Any] = {"stage": int(known["stage"])}
    if known["offload"]:
        zero["offload_optimizer"] = {"device": "cpu"}
        if known["stage"] == "3":
            zero["offload_param"] = {"device": "cpu"}
    return {"zero_optimization": zero}


def _precision(draft: Draft) -> str:
    if draft.get("bf16") is True or draft.get("pure_bf16") is True:
        return "bf16"
    return "fp16" if draft.get("fp16") is True else "no"


def _accelerate_text(zero: Mapping[str, Any], precision: str) -> str:
    stage = int(zero.get("stage", 0))
    lines = [
        "# Made by `dualign import` from DeepSpeed's file.",
        "# Without num_processes accelerate starts one process for each GPU of the machine.",
        "compute_environment: LOCAL_MACHINE",
        "distributed_type: DEEPSPEED",
        "num_machines: 1",
        "machine_rank: 0",
        "main_training_function: main",
        f'mixed_precision: "{precision}"',
        "rdzv_backend: static",
        "same_network: true",
        "use_cpu: false",
        "deepspeed_config:",
        f"  zero_stage: {stage}",
    ]
    for part in ("optimizer", "param"):
        device = (zero.get(f"offload_{part}") or {}).get("device", "none")
        lines.append(f"  offload_{part}_device: {device}")
    if stage == 3:
        lines += ["  zero3_init_flag: true", "  zero3_save_16bit_model: true"]
    lines.append("  deepspeed_multinode_launcher: standard")
    return "\n".join(lines) + "\n"


def note_batch(draft: Draft, starts: str) -> None:
    """Say what a step's batch depends on, where no launcher is known; `starts`: who starts processes there."""
    if draft.has("launch"):
        return
    key = "gradient_accumulation_steps"
    rows, steps = draft.get("per_device_train_batch_size") or 8, draft.get(key) or 1
    ours = draft.stage.get("train", {}).get(key, steps)
    draft.change(
        key,
        f"train.{key}",
        ours,
        f"{starts}, and a step has processes x {rows} x {steps} rows; here one process trains until launch names "
        "an accelerate file (--launch), so raise this for the same batch",
    )


def launch_by_accelerate(draft: Draft, file: Path) -> None:
    """Set an accelerate file, which the command line names, as the stage's `launch`.

    Raises:
        ConfigError: the file isn't there, or isn't accelerate's.
    """
    document = read_yaml(file)
    document.raise_problems()
    settings = document.value
    if not set(_SIGNS) & set(settings):
        keys = ", ".join(map(str, settings)) or "nothing"
        raise ConfigError(
            f"{file}: isn't an accelerate file: expected distributed_type, found {keys}"
        )
    processes, engine = settings.get("num_processes"), settings.get("distributed_type", "NO")
    sharded = engine == "FSDP" and (settings.get("fsdp_config") or {}).get("fsdp_version", 1) == 1
    old = "; FSDP1 wasn't tried here: recipes/accelerate/fsdp2.yaml was" if sharded else ""
    says = f"{file.name}: {engine} in {processes or 'one for each GPU:'} processes, as there{old}"
    path = os.path.relpath(file, draft.out)
    draft.assume("(launch)", "launch", path, says)
