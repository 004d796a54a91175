"""How a run was launched: a DeepSpeed file, or accelerate's, as the `launch` of a stage."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualign.config import read_yaml
from dualign.errors import ConfigError
from dualign.importing.accelerate_files import (
    add_launch,
    deepspeed_settings,
    left_out,
    read_deepspeed,
)
from dualign.importing.draft import Draft

_BY_NAME = re.compile(r"(ds_)?z(ero)?_?(?P<stage>[0-3])(?P<offload>_offload)?(_config)?(_bf16)?")
"""Names of the files that LLaMA-Factory and TRL ship: ds_z3_offload_config.json, zero2.json."""
_SIGNS = ("distributed_type", "compute_environment")


def launch_by_deepspeed(draft: Draft, key: str = "deepspeed") -> None:
    """Write an accelerate file for DeepSpeed's file, or its settings, that `key` names."""
    value = draft.get(key)
    config = dict(value) if isinstance(value, Mapping) else read_deepspeed(draft, str(value))
    guess = "" if config is not None else " (by the file's name)"
    config = _by_name(str(value)) if config is None else config
    if config is None:
        says = "no such file: name an accelerate file in launch (docs/distributed.md)"
        draft.refuse(key, f"{value}: {says}")
        return
    settings = deepspeed_settings(config)
    name = add_launch(draft, settings, precision=_precision(draft))
    others = left_out(config)
    rest = f"; left to DeepSpeed's defaults: {', '.join(others)}" if others else ""
    says = (
        f"ZeRO-{settings['deepspeed_config']['zero_stage']}{guess} as an accelerate file, one process for each "
        "GPU; a step has processes x per_device_train_batch_size x gradient_accumulation_steps rows, as "
        f"there{rest}"
    )
    draft.change(key, "launch", name, says)


def _by_name(name: str) -> dict[str, Any] | None:
    """Return the settings of a file that isn't here by its well-known name; None if it has none."""
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
