"""How a run was launched: a DeepSpeed file, or accelerate's, as the `launch` of a stage."""

import os
from pathlib import Path

from dualign.config import read_yaml
from dualign.errors import ConfigError
from dualign.importing.accelerate_files import (
    add_launch,
    deepspeed_config,
    deepspeed_settings,
    left_out,
)
from dualign.importing.draft import Draft

_SIGNS = ("distributed_type", "compute_environment")


def launch_by_deepspeed(draft: Draft, *, share: int = 1, precision: str | None = None) -> None:
    """Write an accelerate file for DeepSpeed's file, or its settings, that the tool's file names.

    Args:
        share: how many processes share a row.
        precision: of the accelerate file; absent: what bf16 and fp16 say.
    """
    config, guess = deepspeed_config(draft)
    if config is None:
        says = "no such file, so nothing launches the stage: set launch (docs/distributed.md)"
        draft.refuse("deepspeed", f"{draft.get('deepspeed')}: {says}")
        return
    settings = deepspeed_settings(config, share)
    name = add_launch(draft, settings, precision=precision or _precision(draft))
    others = left_out(config)
    says = (
        f"ZeRO-{settings['deepspeed_config']['zero_stage']} as an accelerate file beside the recipe{guess}; the "
        "batch, its accumulation and clipping are the recipe's, and a process is started on each GPU"
    )
    if others:
        says += f"; left to DeepSpeed's defaults: {', '.join(others)}"
    draft.change("deepspeed", "launch", name, says)


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
