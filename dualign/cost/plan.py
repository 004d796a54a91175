"""Plan of a recipe, stage by stage: its state, rows, tokens, steps, memory and time.

Nothing is trained or written. Figures that depend on a stage that hasn't run yet are None.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import yaml

from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.embedded import embedded_model
from dualign.cost.memory import MemoryEstimate, estimate
from dualign.cost.model_shape import ModelShape
from dualign.cost.speed import cpu_throughput, device_throughput, estimate_seconds, training_flops
from dualign.cost.training_shape import LoraShape, TrainingShape
from dualign.data.prepare import PairData, SFTData
from dualign.data.rows.reading import reading_notes
from dualign.engine import StageStatus
from dualign.errors import CheckpointError, DualignError
from dualign.model_ref import ModelRef, adapter_base
from dualign.recipe import Recipe, StageEntry, references, replace_texts, stage_of
from dualign.stages import stage_kind
from dualign.training.config import TrainingStage

# TRL's and transformers' defaults.
_DEFAULTS = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3.0,
    "max_steps": -1,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingCost:
    """Cost of a training stage; None is unknown. Rows and tokens are those of one epoch."""

    rows: int | None
    tokens: int | None
    steps: int | None
    rows_per_step: int
    tokens_per_step: int
    memory: MemoryEstimate | None
    seconds: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """State of a stage, and its cost if it trains."""

    name: str
    kind: str
    state: str
    """done, cut off (resumes), changed (runs again) or new"""
    parents: tuple[str, ...]
    """stages that it starts from"""
    waits_for: tuple[str, ...] = ()
    """stages that haven't run, so that the rows of this training stage aren't known"""
    rows: Mapping[str, Any] | None = None
    """ROWS of docs/architecture.md; None if the stage doesn't train or its data isn't here"""
    cost: TrainingCost | None = None
    details: str = ""
    """description of a stage that doesn't train"""


@runtime_checkable
class _Described(Protocol):
    """A stage's dataclass with a description for the plan."""

    def in_words(self) -> str: ...


def plan_stage(recipe: Recipe, status: StageStatus, statuses: list[StageStatus]) -> StagePlan:
    """Plan one stage. A training stage's data is prepared, if it is here."""
    entry = status.entry
    stage = StagePlan(
        name=entry.name,
        kind=entry.kind,
        state=status.state,
        parents=tuple(dict.fromkeys(ref.name for ref in references(entry.config).values())),
        details=entry.config.in_words() if isinstance(entry.config, _Described) else "",
    )
    if not isinstance(entry.config, TrainingStage):
        return stage
    config, missing = resolve_references(entry, statuses)
    data = None
    if not missing and _data_is_here(config):
        data, _ = prepare_data(config, entry.seed)
    base = base_model(entry, {status.entry.name: status.entry for status in statuses})
    return replace(
        stage,
        waits_for=tuple(missing),
        rows=data.rows if data else None,
        cost=_training_cost(config, data, base=base, folder=recipe.file.parent),
    )


def base_model(entry: StageEntry, stages: Mapping[str, StageEntry]) -> str:
    """Return the model that the pipeline up to this stage starts from."""
    models = getattr(entry.config, "models", ())
    first = getattr(models[0], "model", "") if models else ""
    reference = str(getattr(entry.config, "model", first))
    parent = stage_of(reference)
    return base_model(stages[parent], stages) if parent else reference


def _training_cost(
    config: Any, data: SFTData | PairData | None, *, base: str, folder: Path
) -> TrainingCost:
    """Estimate steps, tokens, memory and time of a training stage.

    `base` is the model that the pipeline starts from, `folder` the recipe's, for model_config.json.
    """
    train = {**_DEFAULTS, **config.train}
    world, sharding = _launcher(config.launch)
    rows_per_step = (
        train["per_device_train_batch_size"] * train["gradient_accumulation_steps"] * world
    )
    rows = len(data.train) if data else None
    tokens = data.rows["tokens"] if data else None
    steps = _steps(train, rows, world)
    notes = list(reading_notes(data.sources)) if data else []
    shape = _model_shape(base, folder, notes)
    longest, mean = config.data.max_tokens, float(config.data.max_tokens)
    if isinstance(data, PairData):
        longest, mean = _pair_tokens(data)
    elif data:
        mean = data.rows["tokens"] / len(data.train)
    elif stage_kind(config.kind).takes_pairs:
        mean *= 2
    step = _training_shape(config, world, sharding, longest=longest)
    try:
        memory = estimate(shape, step) if shape else None
    except DualignError as error:
        notes.append(str(error))
        memory = None
    tokens_per_step = round(mean * rows_per_step)
    seconds = None
    if shape and steps:
        flops = training_flops(shape, step, steps * tokens_per_step)
        seconds = estimate_seconds(flops, _throughput(notes), devices=world)
    return TrainingCost(
        rows=rows,
        tokens=tokens,
        steps=steps,
        rows_per_step=rows_per_step,
        tokens_per_step=tokens_per_step,
        memory=memory,
        seconds=seconds,
        notes=tuple(notes),
    )


def _steps(train: Mapping[str, Any], rows: int | None, world: int) -> int | None:
    if train["max_steps"] > 0:
        return int(train["max_steps"])
    if rows is None:
        return None
    batches = math.ceil(rows / (train["per_device_train_batch_size"] * world))
    per_epoch: int = max(1, math.ceil(batches / train["gradient_accumulation_steps"]))
    epochs: float = train["num_train_epochs"]
    return math.ceil(per_epoch * epochs)


def resolve_references(entry: StageEntry, statuses: list[StageStatus]) -> tuple[Any, list[str]]:
    """Replace references to finished stages by paths; also return the unfinished stages."""
    done = {status.entry.name: status for status in statuses if status.state == "done"}
    paths, missing = {}, []
    for text, ref in references(entry.config).items():
        if ref.name in done:
            paths[text] = str(done[ref.name].run_dir.resolve() / ref.path)
        elif ref.name not in missing:
            missing.append(ref.name)
    return replace_texts(entry.config, paths), missing


def _data_is_here(config: Any) -> bool:
    return all(Path(source.path).exists() or "*" in source.path for source in config.data.sources)


def prepare_data(config: Any, seed: int) -> tuple[SFTData | PairData, Any]:
    """Return a training stage's rows as training gets them, and the tokenizer."""
    from dualign.data.prepare import DataRequest, prepare_pairs, prepare_sft
    from dualign.models.source import resolve_model
    from dualign.models.tokenizer import load_tokenizer

    tokenizer, template = load_tokenizer(
        resolve_model(config.model, revision=config.revision),
        config.template,
        config.template_kwargs,
    )
    prepare = prepare_pairs if stage_kind(config.kind).takes_pairs else prepare_sft
    return prepare(DataRequest(config.data, tokenizer, template, seed=seed)), tokenizer


def _launcher(launch: str | None) -> tuple[int, Any]:
    """Read processes and sharding from an accelerate config file, or from the environment."""
    if launch is None:
        return int(os.environ.get("WORLD_SIZE", "1")), None
    settings = yaml.safe_load(Path(launch).read_text(encoding="utf-8"))
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


def _model_shape(base: str, folder: Path, notes: list[str]) -> ModelShape | None:
    """Read the model's config.json; for a hub id, model_config.json in the recipe's folder."""
    for path in _config_candidates(base, folder):
        if path.is_file():
            settings = json.loads(path.read_text(encoding="utf-8"))
            try:
                return ModelShape.from_config(settings, where=str(path))
            except CheckpointError as error:
                notes.append(str(error))
                return None
    notes.append(
        f"memory and time: {base} isn't here; copy its config.json to {folder / 'model_config.json'}"
    )
    return None


def _config_candidates(model: str, folder: Path) -> list[Path]:
    ref = ModelRef.parse(model)
    if ref.path and (ref.path / "adapter_config.json").is_file():
        ref = adapter_base(ref.path, read_json(ref.path / "adapter_config.json"))
    if ref.kind == "embedded":
        return [embedded_model(ref.name) / "config.json"]
    return [Path(ref.name) / "config.json", folder / "model_config.json"]


def _pair_tokens(pairs: PairData) -> tuple[int, float]:
    """Return (longest, mean) in tokens.

    `longest` is a prompt with its longer answer, to which a batch is padded. `mean` is a whole
    pair, with its prompt twice.
    """
    prompts, chosen, rejected = (
        [len(ids) for ids in pairs.train[name]]
        for name in ("prompt_ids", "chosen_ids", "rejected_ids")
    )
    sides = list(zip(prompts, chosen, rejected, strict=True))
    longest = max(prompt + max(first, second) for prompt, first, second in sides)
    return longest, sum(2 * prompt + first + second for prompt, first, second in sides) / len(sides)


def _training_shape(config: Any, world: int, sharding: Any, *, longest: int) -> TrainingShape:
    pairs = stage_kind(config.kind).takes_pairs
    train = {**_DEFAULTS, **config.train}
    lora = config.lora
    shape = lora and LoraShape(
        r=lora.r, modules=lora.target_modules, dropout=lora.lora_dropout, dora=lora.use_dora
    )
    bf16 = bool(train.get("bf16")) and config.dtype == "float32"
    reference = None
    if pairs:
        reference = "adapter" if lora else "copy"
        reference = "cached" if config.reference == "cached" else reference
    return TrainingShape(
        pairs=pairs,
        micro_batch=train["per_device_train_batch_size"] * (2 if pairs else 1),
        max_tokens=longest,
        dtype="bfloat16" if bf16 else config.dtype,
        master_weights=bf16,
        quantization=config.quantization,
        lora=shape,
        optimizer=train.get("optim", "adamw_torch_fused"),
        gradient_checkpointing=train.get("gradient_checkpointing", True),
        gradient_accumulation=train["gradient_accumulation_steps"],
        reference=reference,  # type: ignore[arg-type]  # as narrowed above
        sharding=sharding,
        world_size=world,
        attention=config.attn_implementation,
        save_copies=1 if config.verify_reload else 0,
        device="cuda" if _gpu_name() or sharding or config.dtype != "float32" or bf16 else "cpu",
    )


def _gpu_name() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _throughput(notes: list[str]) -> float | None:
    name = _gpu_name()
    if name is None:
        return cpu_throughput()
    throughput = device_throughput(name)
    if throughput is None:
        notes.append(f"training time: the throughput of {name} isn't known")
    return throughput
