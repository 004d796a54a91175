"""Plan of a recipe, stage by stage: its state, rows, tokens, steps, memory and time.

Nothing is trained or written. Figures that depend on a stage that hasn't run yet are None.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dualign.cost.measured import base_model, mean_row_tokens, throughput
from dualign.cost.memory import MemoryEstimate, estimate
from dualign.cost.model_shape import ModelShape, config_file, shape_of
from dualign.cost.row_tokens import by_pairs, row_lengths
from dualign.cost.speed import estimate_seconds, training_flops
from dualign.cost.stage_shape import (
    count_steps,
    launcher,
    part_of_rows,
    rows_per_step,
    train_settings,
    training_shape,
)
from dualign.cost.start_config import positions_in_words, stretched_model
from dualign.cost.start_margins import margin_notes, measure_margins
from dualign.cost.trial import measure_speed
from dualign.data.prepare import PairData, Prepared, RatedData
from dualign.data.request import LOOKED_AT
from dualign.data.rows.reading import reading_notes
from dualign.data.workers import Share
from dualign.engine import StageStatus
from dualign.errors import ConfigError, DualignError
from dualign.model_ref import EMBEDDED_PREFIX, ModelRef, StageRef
from dualign.models.new_tokens import occurrence_notes
from dualign.recipe import Recipe, StageEntry, references, replace_texts, stage_of
from dualign.retention.estimate import retention_notes
from dualign.stages import stage_kind
from dualign.training.config import TrainingStage
from dualign.training.parallelism import parallelism
from dualign.training.precision import in_words, training_device
from dualign.training.preflight import pause_after_end


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
    seconds_at_most: bool
    """the rows aren't known, and all were taken as long as `max_tokens`"""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingFacts:
    """What is known of a training stage before it runs."""

    config: Any
    """the stage's, with paths in place of references to finished stages"""
    missing: tuple[str, ...]
    """stages that its rows wait for"""
    data: Prepared | None
    shape: ModelShape | None
    settled: Any
    """the stage with its attention spelled out, if that is known"""
    notes: tuple[str, ...]
    attention: tuple[str, ...]
    """what was said of it"""


@runtime_checkable
class _Described(Protocol):
    """A stage's dataclass with a description for the plan."""

    def in_words(self) -> str: ...


def plan_stage(
    recipe: Recipe, status: StageStatus, statuses: list[StageStatus], *, measure: bool = False
) -> StagePlan:
    """Plan one stage. A training stage's data is prepared, if it is here.

    Args:
        measure: train a few steps of a stage that isn't done, for its time (`trial`).
    """
    entry = status.entry
    known, _ = resolve_references(entry, statuses)
    stage = StagePlan(
        name=entry.name,
        kind=entry.kind,
        state=status.state,
        parents=tuple(dict.fromkeys(ref.name for ref in references(entry.config).values())),
        details=known.in_words() if isinstance(known, _Described) else "",
    )
    stretched = stretched_model(status, statuses, recipe.file.parent)
    if not isinstance(entry.config, TrainingStage):
        return stage
    facts = training_facts(recipe, status, statuses)
    config, notes = facts.config, list(facts.notes)
    # Of the pairs, None where another model stands in for the start model.
    own = _starts_here(entry, statuses)
    pairs = facts.data if isinstance(facts.data, PairData) and own else None
    settled, more = config, list[str]()
    if status.state != "done":
        settled, more = facts.settled, list(facts.attention)
        more += positions_in_words(entry, stretched, facts.data.rows if facts.data else None)
        if measure and facts.shape:
            notes += _measured(config, facts.shape, facts.data, pairs, entry.seed)
        if pairs:
            more += margin_notes(config, pairs)
    cost = _training_cost(status, config, settled, facts.data, statuses, facts.shape, notes)
    return replace(
        stage,
        waits_for=facts.missing,
        rows=facts.data.rows if facts.data else None,
        cost=replace(cost, notes=(*cost.notes, *more)),
    )


def training_facts(
    recipe: Recipe, status: StageStatus, statuses: list[StageStatus], *, prepares: bool = True
) -> TrainingFacts:
    """Return what is known of a training stage; its data is prepared, if it is here.

    Args:
        prepares: False takes the rows as unknown.
    """
    entry = status.entry
    config, missing = _startable(entry, statuses)
    data, notes, attention = None, list[str](), list[str]()
    if prepares and not missing and _data_is_here(config):
        data, tokenizer = prepare_data(config, entry.seed)
        notes += occurrence_notes(data.train, tokenizer, config.new_tokens)
    base = base_model(entry, {other.entry.name: other.entry for other in statuses})
    file = config_file(base, recipe.file.parent, notes)
    shape = shape_of(base, recipe.file.parent, notes) if file else None
    settled = config
    if status.state != "done":
        settled = _settled(config, file, attention) if file else config
        _require_room(settled, data)
    return TrainingFacts(
        config=config,
        missing=tuple(missing),
        data=data,
        shape=shape,
        settled=settled,
        notes=tuple(notes),
        attention=tuple(attention),
    )


def _starts_here(entry: StageEntry, statuses: list[StageStatus]) -> bool:
    """Return whether the start model is there: no stage's, or that of a finished one."""
    parent = stage_of(entry.config.model)
    return parent is None or any(
        status.entry.name == parent and status.state == "done" for status in statuses
    )


def _settled(config: Any, file: Path, notes: list[str]) -> Any:
    """Return the stage with its attention spelled out, by the model's config.json, and note which.

    Raises:
        CheckpointError: the model can't do what the stage asks of it.
    """
    from transformers import AutoConfig

    from dualign.training.attention import attention_in_words

    try:
        model = AutoConfig.from_pretrained(file, trust_remote_code=False)
    except (KeyError, ValueError):  # a kind that isn't known here; loading it says so
        return config
    pairs = stage_kind(config.kind).takes_pairs
    attention, words = attention_in_words(config, model, config.model, pairs=pairs)
    notes += [words] if words else []
    if config.tiled_mlp:
        from dualign.training.tiled_mlp import tiles_in_words

        notes.append(tiles_in_words(model))
    return replace(config, attn_implementation=attention)


def _require_room(config: Any, data: Prepared | None) -> None:
    """Refuse batches of pairs that the longest pair doesn't fit in.

    Raises:
        ConfigError: there is a longer one.
    """
    most = getattr(config, "batch_tokens", None)
    if most is None or not isinstance(data, PairData | RatedData):
        return
    from dualign.models.pairs import PAIR, pair_sizes

    padded = config.attn_implementation not in ("auto", "dualign")
    try:
        answers = PAIR if isinstance(data, PairData) else ("answer_ids",)
        pair_sizes(data.train, "padded" if padded else "shared", most=most, answers=answers)
    except ConfigError as error:
        raise ConfigError(f"stage {config.name}: {error}") from None


def _startable(entry: StageEntry, statuses: list[StageStatus]) -> tuple[Any, list[str]]:
    """Return the stage with paths in place of references, and the stages that its rows wait for.

    Where its start model is missing, the model that the pipeline starts from stands in, if it is
    here: it has the same tokenizer and shape, so rows are known as soon as they exist.
    """
    config, missing = resolve_references(entry, statuses)
    base = base_model(entry, {status.entry.name: status.entry for status in statuses})
    here = ModelRef.parse(base).path is not None or base.startswith(EMBEDDED_PREFIX)
    # The template, or the tokenizer, of the model that isn't there.
    own = config.template == "tokenizer" or _have_new_tokens(config.model, statuses)
    if StageRef.parse(config.model) is None or own or not here:
        return config, missing
    config = replace(config, model=base)
    waits = {ref.name for ref in references(config).values()}
    return config, [name for name in missing if name in waits]


def _have_new_tokens(model: str, statuses: list[StageStatus]) -> bool:
    """Return whether a stage on the way to the model adds tokens."""
    parent = stage_of(model)
    if parent is None:
        return False
    config = next(status.entry.config for status in statuses if status.entry.name == parent)
    starts = [config.model] if hasattr(config, "model") else [m.model for m in config.models]
    return bool(getattr(config, "new_tokens", ())) or any(
        _have_new_tokens(str(start), statuses) for start in starts
    )


def _measured(
    config: Any,
    shape: ModelShape,
    data: Prepared | None,
    pairs: PairData | None,
    seed: int,
) -> list[str]:
    """Train a few steps; `pairs` are those that the start model is asked about."""

    def ask_start_model(trainer: object) -> None:
        if pairs:
            measure_margins(config, pairs, trainer)

    try:
        measure_speed(config, shape, data, seed=seed, before=ask_start_model)
    except DualignError as error:
        return [f"not measured: {error}"]
    return []


def _training_cost(
    status: StageStatus,
    config: Any,
    settled: Any,
    data: Prepared | None,
    statuses: list[StageStatus],
    shape: ModelShape | None,
    notes: list[str],
) -> TrainingCost:
    """Estimate steps, tokens, memory and time of a training stage.

    Args:
        config: the stage's, with paths in place of references to finished stages.
        settled: the same with its attention spelled out, if that is known.
        notes: what was said of the model so far.
    """
    counted = by_pairs(config, data)
    train = train_settings(counted)
    world, _ = launcher(config.launch)
    spread = parallelism(config.launch)
    step_rows = rows_per_step(counted, spread.replicas)
    is_stream = config.data.stream is not None
    rows = len(data.train) if data and not is_stream else None
    tokens = data.rows["tokens"] if data and not is_stream else None
    steps = count_steps(train, rows, spread.replicas)
    if status.state != "done":
        _require_later_step(config, steps)
    if is_stream:
        notes = [f"a stream: of each source {LOOKED_AT:,} rows at most were looked at", *notes]
    if data:
        notes = [*reading_notes(data.sources), *config.data_notes(data.rows), *notes]
    longest, largest, mean = row_lengths(config, data)
    earlier = mean_row_tokens(status) if data is None else None
    mean = earlier or mean
    step = training_shape(settled, longest=longest, largest_pair=largest)
    try:
        memory = estimate(shape, part_of_rows(step, spread.sp_size)) if shape else None
    except DualignError as error:
        notes.append(str(error))
        memory = None
    tokens_per_step = round(mean * step_rows)
    seconds = None
    if shape and steps:
        flops = training_flops(shape, step, steps * tokens_per_step)
        speed, source = throughput(status, statuses, config, shape, longest=longest)
        seconds = estimate_seconds(flops, speed, devices=world)
        notes.append(f"training time: {source}")
        if data is None:
            length = "as in its earlier run" if earlier else "as max_tokens"
            notes.append(f"the rows aren't known yet; they are taken to be as long {length}")
    notes += retention_notes(config, steps)
    if config.dtype == "auto":
        notes.append(in_words(config, training_device(config)))
    return TrainingCost(
        rows=rows,
        tokens=tokens,
        steps=steps,
        rows_per_step=step_rows,
        tokens_per_step=tokens_per_step,
        memory=memory,
        seconds=seconds,
        seconds_at_most=data is None and not earlier,
        notes=tuple(notes),
    )


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


def prepare_data(config: Any, seed: int, share: Share | None = None) -> tuple[Prepared, Any]:
    """Return a training stage's rows as training gets them, and the tokenizer. With a `share` only
    that part is prepared.
    """
    from dualign.data.prepare import prepare
    from dualign.models.source import resolve_model
    from dualign.training.rows import request_rows

    source = resolve_model(config.model, revision=config.revision)
    request = replace(request_rows(config, source, seed=seed), share=share)
    return prepare(request, config.row_type), request.tokenizer


def _require_later_step(config: Any, steps: int | None) -> None:
    """Refuse a pause after the last step; steps of batches by tokens are an estimate.

    Raises:
        ConfigError: it never comes.
    """
    pause, estimated = config.pause_at_step, getattr(config, "batch_tokens", None) is not None
    if pause and steps and not estimated and pause > steps:
        message = pause_after_end(steps, pause)
        raise ConfigError(f"stage {config.name}: pause_at_step: {message}")
