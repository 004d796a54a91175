"""A stage's speed: measured when it or its like trained here before, else assumed from the device."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from typing import Any

from dualign.cost.model_shape import ModelShape
from dualign.cost.speed import cpu_throughput, device_throughput, training_flops
from dualign.cost.stage_shape import launcher, rows_per_step, training_shape
from dualign.cost.trial import remembered_speed
from dualign.engine import StageStatus
from dualign.errors import DualignError
from dualign.models.device import device_name, gpu_name
from dualign.recipe import StageEntry, stage_of
from dualign.rundir import read_run
from dualign.training.config import TrainingStage
from dualign.training.parallelism import parallelism
from dualign.training.precision import arithmetic, resolved, training_device

_ADAPTER_SIZES = (
    "r",
    "exclude_modules",
    "layers_to_transform",
    "rank_pattern",
    "modules_to_save",
)
_SIZES = ("quantization", "launch", "attn_implementation")
_WAY_OUT = "dualign plan --measure trains a few steps to know it"
_TOKENS = 10**6  # operations are counted for so many, and divided again


def base_model(entry: StageEntry, stages: Mapping[str, StageEntry]) -> str:
    """Return the model that the pipeline up to this stage starts from."""
    models = getattr(entry.config, "models", ())
    first = getattr(models[0], "model", "") if models else ""
    reference = str(getattr(entry.config, "model", first))
    parent = stage_of(reference)
    return base_model(stages[parent], stages) if parent else reference


def throughput(
    status: StageStatus,
    statuses: list[StageStatus],
    config: Any,
    shape: ModelShape,
    *,
    longest: int,
) -> tuple[float | None, str]:
    """Return the operations per second of one device in this stage, and where the figure is from.

    First choice is the stage's own earlier run, then steps that `plan --measure` made of it, then a
    stage of its kind, then any on the same model: the records of runs in the output folder have
    tokens and seconds. None if nothing is known.

    Args:
        config: the stage's, with paths in place of references.
    """
    trial = remembered_speed(config, shape)
    for other in sorted(statuses, key=lambda other: _distance(other, status)):
        if trial and other.entry.name != status.entry.name:
            break
        measured = _measured(other, status, statuses, shape, longest=longest)
        if measured is not None:
            speed, tokens_per_second = measured
            return speed, (
                f"as {other.entry.name} trained here before, {tokens_per_second:,.0f} tokens per second"
            )
    if trial:
        words = f"as measured here, {trial:,.0f} tokens per second"
        return trial * _operations_per_token(config, shape, longest=longest), words
    return _assumed(on_cpu=training_device(config).kind == "cpu")


def mean_row_tokens(status: StageStatus) -> float | None:
    """Return the mean tokens of a row (of a pair, its prompt twice) in the stage's earlier run."""
    record = read_run(status.run_dir)
    metrics = record.get("metrics", {})
    if not metrics.get("tokens") or not metrics.get("steps"):
        return None
    recorded = replace(status.entry.config, train=record["config"]["train"])
    rows = metrics["steps"] * rows_per_step(recorded, parallelism(recorded.launch).replicas)
    return float(metrics["tokens"] / rows)


def _distance(other: StageStatus, status: StageStatus) -> tuple[bool, bool]:
    entry = status.entry
    return other.entry.name != entry.name, other.entry.kind != entry.kind


def _measured(
    other: StageStatus,
    status: StageStatus,
    statuses: list[StageStatus],
    shape: ModelShape,
    *,
    longest: int,
) -> tuple[float, float] | None:
    """Return operations and tokens per second of a finished stage on the same model and device."""
    config = other.entry.config
    if not isinstance(config, TrainingStage):
        return None
    record = read_run(other.run_dir)
    metrics: Mapping[str, Any] = record.get("metrics", {})
    tokens, seconds = metrics.get("tokens"), metrics.get("train_seconds")
    # The clock of a resumed run began when it was resumed.
    if not tokens or not seconds or record.get("resumed"):
        return None
    stages = {status.entry.name: status.entry for status in statuses}
    if (
        base_model(other.entry, stages) != base_model(status.entry, stages)
        or metrics.get("device", _device_of(config)) != _device_of(config)
        or not _same_size(record["config"], config)
        or not _same_types(record, config)
    ):
        return None
    try:
        operations = _operations_per_token(config, shape, longest=longest)
    except DualignError:  # the memory of such a step isn't known, and the stage's own plan says so
        return None
    world, _ = launcher(config.launch)
    return operations * tokens / seconds / world, tokens / seconds


def _device_of(config: TrainingStage) -> str:
    return device_name(on_cpu=training_device(config).kind == "cpu")


def _operations_per_token(config: Any, shape: ModelShape, *, longest: int) -> float:
    return training_flops(shape, training_shape(config, longest=longest), _TOKENS) / _TOKENS


def _same_size(recorded: Mapping[str, Any], config: TrainingStage) -> bool:
    """Return whether the stage, which may have been changed since, costs as much per token as then."""
    settings = all(recorded.get(name) == getattr(config, name) for name in _SIZES)
    adapters = recorded.get("lora"), asdict(config.lora) if config.lora else None
    sizes = [None if lora is None else _adapter_size(lora) for lora in adapters]
    return settings and sizes[0] == sizes[1]


def _adapter_size(lora: Mapping[str, Any]) -> list[Any]:
    """Return what says how much an adapter computes; a record writes tuples as lists."""
    parts = [lora.get(key) or None for key in _ADAPTER_SIZES]
    return [list(part) if isinstance(part, tuple) else part for part in parts]


def _same_types(record: Mapping[str, Any], config: TrainingStage) -> bool:
    """Return whether the stage would be trained in the types that it was trained in then."""
    stage, metrics = resolved(config), record["metrics"]
    dtype = metrics.get("dtype", record["config"].get("dtype"))
    computed = metrics.get("arithmetic", arithmetic(stage))  # older records don't say
    return bool((dtype, computed) == (stage.dtype, arithmetic(stage)))


def _assumed(*, on_cpu: bool) -> tuple[float | None, str]:
    name = None if on_cpu else gpu_name()
    if name is None:
        measured = _cpu_throughput()
        return measured, (
            f"a guess, from a matrix product on this CPU ({measured:.1e} operations per second); "
            f"{_WAY_OUT}"
        )
    speed = device_throughput(name)
    if speed is None:
        return None, f"the throughput of {name} isn't known; {_WAY_OUT}"
    return speed, (f"a guess, from {speed:.1e} operations per second of {name}; {_WAY_OUT}")


@cache
def _cpu_throughput() -> float:
    """Measure once, so that equal stages get equal guesses."""
    return cpu_throughput()
