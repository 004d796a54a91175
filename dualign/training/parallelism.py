"""How a launcher spreads a stage over processes, by its accelerate config or the environment of a rank.

What can't be trained that way is refused here, before anything starts.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.launcher import Launch, config_file, launch_settings
from dualign.training.config import TrainingStage

Issue = tuple[str, str]
_FILE = "recipes/accelerate/ulysses.yaml"
NEEDS_SHARDS = (
    "only FSDP2's sharded checkpoints can be written while training goes on (fsdp_version: 2 and "
    "fsdp_state_dict_type: SHARDED_STATE_DICT, as in recipes/accelerate/fsdp2.yaml): launch so, or remove the key"
)
_DECOUPLED = (
    "checkpoint.writer.decoupled of DeepSpeed's config: nothing says when such a checkpoint is written, so a killed run "
    "would go on from half of one: remove it (FSDP2 has async_checkpoints)"
)
_PREFIX = "parallelism_config_"
_SIZES = ("sp_size", "cp_size", "tp_size", "dp_replicate_size", "dp_shard_size")
# Arguments whose meaning is one process with whole rows: (values that are fine, why others aren't).
_WHOLE_ROWS: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "loss_type": (("nll",), "weighs tokens by their own loss, which isn't tried on parts of rows"),
    "neftune_noise_alpha": (
        (None, 0),
        "scales its noise by the length of the part, not of the row",
    ),
    "torch_compile": ((False,), "isn't tried around DeepSpeed's exchanges"),
    "average_tokens_across_devices": (
        (True,),
        "a row's labels lie on several processes, so they're always averaged over all",
    ),
    "train_sampling_strategy": (
        ("random", "sequential", "group_by_length"),
        "gives processes rows of their own",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Parallelism:
    """Processes of a launch, and the sizes of accelerate's parallelism_config."""

    processes: int = 1
    engine: str = "NO"
    """accelerate's distributed_type"""
    zero_stage: int | None = None
    """of DeepSpeed; None: not said in accelerate's config"""
    deepspeed_config_file: str | None = None
    sharded_checkpoints: bool = False
    """of FSDP2: each process writes its part"""
    sp_size: int = 1
    """processes that share a row (DeepSpeed Ulysses)"""
    cp_size: int = 1
    tp_size: int = 1
    dp_replicate_size: int = 1
    dp_shard_size: int = 1

    @property
    def replicas(self) -> int:
        """How many rows are computed at once: each by a process, or by `sp_size` of them."""
        return max(1, self.processes // self.sp_size)


def parallelism(launch: Launch | None) -> Parallelism:
    """Return how a stage is spread: by its launcher's config, or as this rank's launcher said.

    Raises:
        ValueError: a size isn't a number.
    """
    if launch is None or "WORLD_SIZE" in os.environ or not Path(config_file(launch)).is_file():
        return _of_environment(os.environ)
    return of_config(launch_settings(launch))


def of_config(settings: Mapping[str, Any]) -> Parallelism:
    """Return what an accelerate config says."""
    sizes = settings.get("parallelism_config") or {}
    deepspeed = settings.get("deepspeed_config") or {}
    zero_stage = deepspeed.get("zero_stage")
    engine = str(settings.get("distributed_type", "NO")).upper()
    fsdp = settings.get("fsdp_config") or {}
    kind = (fsdp.get("fsdp_version"), fsdp.get("fsdp_state_dict_type"))
    return Parallelism(
        processes=int(settings.get("num_processes") or 1),
        engine=engine,
        zero_stage=None if zero_stage is None else int(zero_stage),
        deepspeed_config_file=deepspeed.get("deepspeed_config_file"),
        sharded_checkpoints=engine == "FSDP" and _writes_shards(*kind),
        **{name: int(sizes.get(f"{_PREFIX}{name}") or 1) for name in _SIZES},
    )


def _of_environment(environment: Mapping[str, str]) -> Parallelism:
    sizes = environment if environment.get("ACCELERATE_USE_PARALLELISM_CONFIG") == "true" else {}
    engines = ("DEEPSPEED", "FSDP")
    on = [name for name in engines if environment.get(f"ACCELERATE_USE_{name}", "") == "true"]
    zero_stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    engine = on[0] if on else "NO"
    kind = (environment.get("FSDP_VERSION"), environment.get("FSDP_STATE_DICT_TYPE"))
    return Parallelism(
        processes=int(environment.get("WORLD_SIZE", "1")),
        engine=engine,
        zero_stage=None if zero_stage is None else int(zero_stage),
        deepspeed_config_file=environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"),
        sharded_checkpoints=engine == "FSDP" and _writes_shards(*kind),
        **{name: int(sizes.get(_PREFIX.upper() + name.upper(), "1")) for name in _SIZES},
    )


def _writes_shards(version: object, state_dict_type: object) -> bool:
    """Return whether FSDP, as accelerate sets it up, is FSDP2 whose checkpoints are sharded: its default there."""
    kind = str(state_dict_type or "SHARDED_STATE_DICT").upper()
    return str(version) == "2" and kind in ("SHARDED_STATE_DICT", "3")


def _decouples(file: str | None) -> bool:
    """Return whether a DeepSpeed config lets other processes write checkpoints while training goes on."""
    if not file or not Path(file).is_file():
        return False
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8"))
        return bool(config["checkpoint"]["writer"]["decoupled"])
    except (KeyError, TypeError, ValueError):
        return False


def parallelism_issues(stage: TrainingStage) -> Iterator[Issue]:
    """Yield (key, message) for each reason why a stage can't be spread as its launcher says."""
    try:
        spread = parallelism(stage.launch)
    except (TypeError, ValueError) as error:
        yield "launch", f"{stage.launch}: sizes of parallelism_config are numbers: {error}"
        return
    if stage.async_checkpoints and not spread.sharded_checkpoints:
        yield "async_checkpoints", NEEDS_SHARDS
    if spread.engine == "DEEPSPEED" and _decouples(spread.deepspeed_config_file):
        yield "launch", _DECOUPLED
    if spread.cp_size > 1:
        yield (
            "launch",
            f"cp_size {spread.cp_size}: torch's context parallelism takes causal attention without a mask, so the "
            f"documents of a row would see each other; share rows by sp_size under DeepSpeed instead ({_FILE})",
        )
    if spread.tp_size > 1:
        yield (
            "launch",
            f"tp_size {spread.tp_size}: models aren't loaded in tensor-parallel parts: remove it",
        )
    if spread.sp_size > 1:
        yield from _sequence(stage, spread)


def _sequence(stage: Any, spread: Parallelism) -> Iterator[Issue]:
    """Yield why rows can't be shared by `sp_size` processes."""
    size, processes = spread.sp_size, spread.processes
    if spread.engine != "DEEPSPEED":
        yield (
            "launch",
            f"sp_size {size} needs distributed_type: DEEPSPEED, found {spread.engine}: without it each process "
            f"would train on whole rows ({_FILE})",
        )
    if spread.zero_stage not in (None, 1, 2, 3):
        yield "launch", f"sp_size {size} needs zero_stage 1, 2 or 3, found {spread.zero_stage}"
    groups = spread.dp_replicate_size * spread.dp_shard_size
    if processes != size * groups:
        yield (
            "launch",
            f"{processes} processes aren't sp_size {size} x dp_replicate_size {groups}: expected "
            f"parallelism_config_dp_replicate_size: {processes // size or 1} and a multiple of {size} processes",
        )
    if stage.attn_implementation not in ("auto", "dualign"):
        yield (
            "attn_implementation",
            f"{stage.attn_implementation} under sp_size {size} would let the documents of a row see each other: "
            "remove the key, for attention by document",
        )
    if getattr(stage, "batch_tokens", None) is None:
        batch = stage.train.get("per_device_train_batch_size", 8)
        if batch != 1:
            yield (
                "train.per_device_train_batch_size",
                f"processes that share rows take one at a time, found {batch}: set 1, and "
                "gradient_accumulation_steps for more rows in a step",
            )
    for name, (fine, reason) in _WHOLE_ROWS.items():
        is_pair_loss = name == "loss_type" and stage.kind == "preference"
        if stage.train.get(name, fine[0]) not in fine and not is_pair_loss:
            yield f"train.{name}", f"{stage.train[name]!r} under sp_size {size}: {reason}"
    if stage.data.stream is not None:
        yield (
            "data.streaming",
            f"each process reads rows of its own, and sp_size {size} needs the same rows in them",
        )
    yield from _preference(stage, size)


def _preference(stage: Any, size: int) -> Iterator[Issue]:
    if stage.kind != "preference":
        return
    if stage.reference_source == "copy":
        yield (
            "reference",
            f"a frozen copy under sp_size {size} would compute whole rows in every process: set reference: cached, "
            "or train with lora",
        )
    if stage.row_type == "rated":
        yield "train.loss_type", f"answers without partners aren't tried under sp_size {size}"
