"""A training stage's config -> the dimensions of its step: processes, sharding, rows, optimizer."""

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dualign.cost.lora_shape import LoraShape
from dualign.cost.training_shape import TrainingShape
from dualign.launcher import Launch, launch_settings
from dualign.models.device import Device
from dualign.stages import stage_kind
from dualign.training.adapter import AdapterConfig
from dualign.training.precision import arithmetic, resolved, training_device

# TRL's and transformers' defaults.
_DEFAULTS = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3.0,
    "max_steps": -1,
}


def train_settings(config: Any) -> dict[str, Any]:
    """Return the stage's `train:` over the defaults."""
    return {**_DEFAULTS, **config.train}


def rows_per_step(config: Any, world: int) -> int:
    """Return the rows of one optimizer step, in all processes; those that share a row count as one."""
    train = train_settings(config)
    batch: int = train["per_device_train_batch_size"]
    return batch * int(train["gradient_accumulation_steps"]) * world


def count_steps(train: Mapping[str, Any], rows: int | None, world: int) -> int | None:
    """Return the optimizer steps of a training; None if they depend on rows that aren't known."""
    if train["max_steps"] > 0:
        return int(train["max_steps"])
    if rows is None:
        return None
    batches = math.ceil(rows / (train["per_device_train_batch_size"] * world))
    per_epoch: int = max(1, math.ceil(batches / train["gradient_accumulation_steps"]))
    epochs: float = train["num_train_epochs"]
    return math.ceil(per_epoch * epochs)


def launcher(launch: Launch | None) -> tuple[int, Any]:
    """Read processes and sharding from a stage's `launch`, or from the environment."""
    if launch is None:
        return int(os.environ.get("WORLD_SIZE", "1")), None
    settings = launch_settings(launch)
    kind = str(settings.get("distributed_type", "NO")).upper()
    stage = settings.get("deepspeed_config", {}).get("zero_stage")
    sharding = (
        f"zero{stage}"
        if kind == "DEEPSPEED" and stage in (2, 3)
        else "fsdp2"
        if kind == "FSDP"
        else None
    )
    return int(settings.get("num_processes", 1)), sharding


def training_shape(
    config: Any, *, longest: int, largest_pair: int | None = None, device: Device | None = None
) -> TrainingShape:
    """Return the dimensions of a step of this stage.

    Args:
        longest: its longest row in tokens; of pairs, a prompt with the longer answer.
        largest_pair: the most tokens of a prompt with both answers; None: not known yet.
        device: where it would train; that of this process if absent.
    """
    device = device or training_device(config)
    config = resolved(config, device)
    world, sharding = launcher(config.launch)
    pairs = stage_kind(config.kind).takes_pairs
    train = train_settings(config)
    lora = config.lora
    shape = lora and _lora_shape(lora)
    computed = arithmetic(config)
    on_gpu = device.kind == "cuda"
    autocast = config.dtype == "float32" and computed != "float32"
    return TrainingShape(
        pairs=pairs,
        micro_batch=train["per_device_train_batch_size"] * (config.answers_per_row if pairs else 1),
        max_tokens=longest,
        tokens_per_micro_batch=_pair_batch(config, longest, largest_pair) if pairs else None,
        dtype=computed if autocast else config.dtype,
        master_weights=autocast,
        quantization=config.quantization,
        lora=shape,
        optimizer=train.get("optim", "adamw_torch_fused"),
        gradient_checkpointing=train.get("gradient_checkpointing", True),
        tiled_mlp=config.tiled_mlp,
        offloaded=bool(train.get("activation_offloading")),
        gradient_accumulation=train["gradient_accumulation_steps"],
        reference=config.reference_source if pairs else None,
        sharding=sharding,
        world_size=world,
        # What auto is for most models.
        attention="dualign" if config.attn_implementation == "auto" else config.attn_implementation,
        save_copies=1 if config.verify_reload else 0,
        device="cuda" if on_gpu or sharding or computed != "float32" else "cpu",
    )


def part_of_rows(step: TrainingShape, parts: int) -> TrainingShape:
    """Return the step of one of `parts` processes that share each row.

    Between layers it has its part of the positions; in attention all positions, of its part of the heads.
    """
    together = step.tokens_per_micro_batch
    return replace(
        step,
        max_tokens=math.ceil(step.max_tokens / parts),
        tokens_per_micro_batch=together and math.ceil(together / parts),
    )


def _lora_shape(lora: AdapterConfig) -> LoraShape:
    return LoraShape(
        r=lora.r,
        modules=lora.target_modules,
        dropout=lora.lora_dropout,
        dora=lora.use_dora,
        exclude=lora.exclude_modules,
        layers=lora.layers_to_transform,
        rank_pattern=lora.rank_pattern,
        saved=lora.modules_to_save,
        biases=lora.bias != "none",
        frozen_start=lora.takes_from_base,
    )


def _pair_batch(config: Any, longest: int, largest_pair: int | None) -> int | None:
    """Return the tokens of a batch of pairs; None where each answer is a padded row."""
    if config.batch_tokens is not None:
        return int(config.batch_tokens)
    if config.attn_implementation not in ("auto", "dualign"):
        return None
    pairs: int = train_settings(config)["per_device_train_batch_size"]
    return pairs * (largest_pair or config.answers_per_row * longest)
