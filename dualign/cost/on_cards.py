"""A recipe on cards that aren't here: memory of a card, time, tokens per second and price of each stage.

`dualign plan --on 8xH100` shows it. Figures follow from the cards' data sheets, not from a measurement.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dualign.cost.answering import Asking, answering
from dualign.cost.cards import Cluster, cards
from dualign.cost.communication import traffic
from dualign.cost.memory import MemoryEstimate, estimate
from dualign.cost.model_shape import ModelShape
from dualign.cost.plan import TrainingFacts, training_facts
from dualign.cost.row_tokens import attention_span, by_pairs, row_lengths
from dualign.cost.stage_shape import (
    count_steps,
    launcher,
    rows_per_step,
    train_settings,
    training_shape,
)
from dualign.cost.step_time import StepTime, step_time
from dualign.cost.ways import CHEAPER, FASTER, Way, cheaper, smallest_world, ways
from dualign.engine import StageStatus
from dualign.errors import ConfigError, DualignError
from dualign.launcher import config_file
from dualign.recipe import Recipe
from dualign.stages import stage_kind
from dualign.training.config import TrainingStage
from dualign.training.parallelism import parallelism
from dualign.training.precision import arithmetic, resolved

_FASTER = 0.97
"""A way is faster if it takes less than this share of the time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WayCost:
    """What a way to train a stage takes."""

    way: Way
    memory: MemoryEstimate
    fits: bool
    step: StepTime
    tokens_per_second: float
    """of all processes together"""
    seconds: float | None
    """of the stage; None where its steps aren't known"""
    cards: int
    """that work"""

    def price(self, card_hour: float) -> float | None:
        """Return the price of the stage."""
        return None if self.seconds is None else self.cards * self.seconds / 3600 * card_hour

    def price_of_tokens(self, card_hour: float) -> float:
        """Return the price of 10^9 tokens."""
        return self.cards * 1e9 / self.tokens_per_second / 3600 * card_hour


@dataclass(frozen=True, kw_only=True, slots=True)
class StageOnCards:
    """Cost of a stage on a cluster."""

    name: str
    kind: str
    ways: tuple[WayCost, ...] = ()
    """the recipe as it is, then cheaper ways that fit"""
    steps: int | None = None
    tokens_per_step: int = 0
    notes: tuple[str, ...] = ()
    details: str = ""
    """of a stage that doesn't train"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Load:
    """What one stage asks of its cards, whichever way it goes."""

    shape: ModelShape
    cluster: Cluster
    tokens_per_step: int
    steps: int | None
    arithmetic: str
    span: float | None
    """of attention, where the rows are known"""

    def cost(self, way: Way) -> WayCost:
        training = way.training
        tokens = round(self.tokens_per_step / training.world_size)
        step = step_time(
            self.shape,
            training,
            self.cluster,
            tokens=tokens,
            arithmetic=self.arithmetic,
            span=self.span,
            parts=way.parts,
        )
        memory = estimate(self.shape, way.process)
        return WayCost(
            way=way,
            memory=memory,
            fits=memory.total <= self.cluster.card.memory,
            step=step,
            tokens_per_second=self.tokens_per_step / step.seconds,
            seconds=step.seconds * self.steps if self.steps else None,
            cards=training.world_size,
        )


def stage_on_cards(
    recipe: Recipe, status: StageStatus, statuses: list[StageStatus], cluster: Cluster
) -> StageOnCards:
    """Return the cost of one stage.

    Raises:
        ConfigError: its launcher starts another number of processes than there are cards.
    """
    entry = status.entry
    stage = StageOnCards(name=entry.name, kind=entry.kind)
    if isinstance(entry.config, TrainingStage):
        return _training(stage, recipe, status, statuses, cluster)
    if isinstance(entry.config, Asking):
        details = answering(recipe, entry, statuses, cluster)
        return replace(stage, details="\n".join(details))
    if stage_kind(entry.kind).merges:
        return replace(stage, details="merges tensors on the CPU: no card shortens it")
    return replace(stage, details="its time isn't known")


def _training(
    stage: StageOnCards,
    recipe: Recipe,
    status: StageStatus,
    statuses: list[StageStatus],
    cluster: Cluster,
) -> StageOnCards:
    config = status.entry.config
    launcher(config.launch)  # a file that is missing or wrong is refused
    facts, unread = _facts(recipe, status, statuses)
    if facts.shape is None:
        return replace(stage, notes=(*unread, *facts.notes))
    try:
        start = _start(facts, cluster)
    except DualignError as error:
        return replace(stage, notes=(*unread, *facts.notes, str(error)))
    _require_cards(stage.name, config, start, cluster)
    load = _load(facts, facts.shape, start, cluster)
    try:
        first = load.cost(start)
    except DualignError as error:  # an optimizer, or modules, whose size isn't known
        return replace(stage, notes=(*unread, *facts.notes, str(error)))
    others = [cost for way in ways(start, cluster, CHEAPER)[1:] if (cost := load.cost(way)).fits]
    by_way = {id(cost.way): cost for cost in others}
    sized = [(cost.way, cost.memory.total, cost.cards / cost.tokens_per_second) for cost in others]
    chosen = [by_way[id(way)] for way in cheaper(first.memory.total, sized)]
    notes = [*unread, *facts.notes, *facts.attention, *_notes(config, facts, first, cluster)]
    notes += _faster(load, first, cluster) if first.fits else _too_large(load, first, others)
    return replace(
        stage,
        ways=(first, *chosen),
        steps=load.steps,
        tokens_per_step=load.tokens_per_step,
        notes=tuple(notes),
    )


def _facts(
    recipe: Recipe, status: StageStatus, statuses: list[StageStatus]
) -> tuple[TrainingFacts, list[str]]:
    """Return what is known of a stage; where its rows can't be read on this machine, why not."""
    try:
        return training_facts(recipe, status, statuses), []
    except DualignError as error:
        facts = training_facts(recipe, status, statuses, prepares=False)
        return facts, [f"its rows can't be read here: {error}"]


def _start(facts: TrainingFacts, cluster: Cluster) -> Way:
    """Return the recipe as it is."""
    longest, largest, _ = row_lengths(facts.config, facts.data)
    counted = by_pairs(facts.settled, facts.data)
    device = cluster.card.device_kind
    training = training_shape(counted, longest=longest, largest_pair=largest, device=device)
    answers = facts.config.answers_per_row if stage_kind(facts.config.kind).takes_pairs else 1
    shareable = training.attention == "dualign" and facts.config.row_type != "rated"
    return Way(
        training=training,
        answers=answers,
        parts=parallelism(facts.config.launch).sp_size,
        heads=facts.shape.heads if facts.shape and shareable else 0,
    )


def _load(facts: TrainingFacts, shape: ModelShape, start: Way, cluster: Cluster) -> _Load:
    counted = by_pairs(facts.config, facts.data)
    world = start.training.world_size // start.parts
    _, _, mean = row_lengths(facts.config, facts.data)
    rows = len(facts.data.train) if facts.data else None
    return _Load(
        shape=shape,
        cluster=cluster,
        tokens_per_step=round(mean * rows_per_step(counted, world)),
        steps=count_steps(train_settings(counted), rows, world),
        arithmetic=arithmetic(resolved(facts.config, cluster.card.device_kind)),
        span=attention_span(facts.settled, facts.data),
    )


def _require_cards(name: str, config: Any, start: Way, cluster: Cluster) -> None:
    """Refuse a launcher that starts another number of processes than there are cards."""
    world = start.training.world_size
    if config.launch is None or world == cluster.cards:
        return
    file = Path(config_file(config.launch)).name
    rows = start.training.gradient_accumulation * world
    steps, rest = divmod(rows, cluster.cards)  # whether or not processes share rows
    keep = (
        f" and gradient_accumulation_steps: {steps}, for the same rows in a step"
        if not rest
        else f"; {rows} micro-batches of a step can't be shared by {cluster.cards} cards alike"
    )
    raise ConfigError(
        f"stage {name}: launch: {file} starts {world} processes, and --on has {cluster.cards} cards: "
        f"set launch: {{config_file: {file}, num_processes: {cluster.cards}}}{keep}; "
        f"or ask for {world} cards"
    )


def _notes(config: Any, facts: TrainingFacts, first: WayCost, cluster: Cluster) -> Iterator[str]:
    training = first.way.training
    if training.world_size == 1 and cluster.cards > 1:
        yield (
            f"without launch one process works on one of the {cluster.cards} cards "
            "(CUDA_VISIBLE_DEVICES=0; with several in sight the stage is refused)"
        )
    if facts.data is None:
        yield (
            "the rows aren't known yet; each is taken to be one document of max_tokens: of short ones, "
            "attention takes less"
        )
    settled = resolved(config, cluster.card.device_kind)
    yield f"types: {settled.dtype} weights and {arithmetic(settled)} arithmetic on this card"
    if arithmetic(settled) == "bfloat16" and not cluster.card.bfloat16:
        yield (
            f"the {cluster.card.name} has no bfloat16: torch emulates it, at float32's rate; "
            "remove train.bf16, for float16"
        )
    yield _step_in_words(first)
    if sent := traffic(facts.shape, training).formula if facts.shape else "":
        yield f"a process sends in a step: {sent}"


def _step_in_words(cost: WayCost) -> str:
    step = cost.step
    parts = {
        "layers": step.layers,
        "attention": step.attention,
        "starting kernels beside them": step.starting,
        "sending beside them": step.beside,
        "sending after them": step.after,
        "optimizer": step.optimizer,
    }
    words = ", ".join(f"{name} {value:.2g}" for name, value in parts.items() if value)
    return f"seconds of a step as it is: {words}; the card waits in {step.waiting:.0%} of it"


def _faster(load: _Load, first: WayCost, cluster: Cluster) -> Iterator[str]:
    """Yield the fastest way that fits, if there is one."""
    costs = [load.cost(way) for way in ways(first.way, cluster, FASTER)[1:]]
    fitting = [cost for cost in costs if cost.fits]
    if not fitting:
        return
    best = max(fitting, key=lambda cost: cost.tokens_per_second)
    share = first.tokens_per_second / best.tokens_per_second
    if share < _FASTER:
        yield (
            f"faster, and fits: {', '.join(best.way.changes)}: {1 - share:.0%} less time, "
            f"{best.memory.total / 1e9:.1f} GB a card"
        )


def _too_large(load: _Load, first: WayCost, others: list[WayCost]) -> Iterator[str]:
    """Yield what the smallest change would be, where the recipe doesn't fit."""
    card = load.cluster.card
    yield f"it doesn't fit: {first.memory.total / 1e9:.1f} GB of {card.memory_gb:g} GB a card"
    if any(not cost.way.other_result for cost in others):
        return
    if others:
        yield "every way that fits gives another model; the same one needs more or larger cards:"
    smallest = min(
        (way for way in ways(first.way, load.cluster, CHEAPER) if not way.other_result),
        key=lambda way: estimate(load.shape, way.process).total,
    )
    changes = f" with {', '.join(smallest.changes)}" if smallest.changes else ""

    def fits(way: Way) -> bool:
        return estimate(load.shape, way.process).total <= card.memory

    world = smallest_world(smallest, fits, per_node=load.cluster.per_node)
    if world:
        yield f"smallest change: {world} cards under ZeRO-3{changes}"
    else:
        yield f"more of these cards don't help{changes}: what a process has of its own is too large"
    yield from _larger_card(load, smallest, changes)
    yield from _shorter_rows(ways(first.way, load.cluster, CHEAPER), fits)


def _larger_card(load: _Load, way: Way, changes: str) -> Iterator[str]:
    need = estimate(load.shape, way.process).total
    larger = [card for card in cards() if card.memory >= need]
    if larger:
        name = min(larger, key=lambda card: card.memory).name
        yield f"or cards of {need / 1e9:.0f} GB{changes}: the smallest in the table is the {name}"


def _shorter_rows(candidates: list[Way], fits: Callable[[Way], bool]) -> Iterator[str]:
    """Yield the longest rows that fit any way, of ways that train every weight if there are such."""
    bounds = [(way, _longest_row(way, fits)) for way in candidates]
    way, tokens = max(bounds, key=lambda bound: (bound[1] > 0, not bound[0].other_result, bound[1]))
    if tokens:
        changes = ", ".join((f"data.max_tokens: {tokens}", *way.changes))
        reasons = "; ".join(["longer rows are dropped or cut", *filter(None, [way.other_result])])
        yield f"or {changes} (another result: {reasons})"


def _longest_row(way: Way, fits: Callable[[Way], bool]) -> int:
    """Return the longest row that fits, of those 2, 4, ... times shorter; 0 if none of 512 does."""
    training = way.training
    tokens, of = training.max_tokens // 2, training.max_tokens
    together = training.tokens_per_micro_batch
    while tokens >= 512:
        part = together and -(-together * tokens // of)
        shorter = replace(training, max_tokens=tokens, tokens_per_micro_batch=part)
        if fits(replace(way, training=shorter)):
            return tokens
        tokens //= 2
    return 0
