"""Ways to train a stage in less memory, or in less time, and which of them fit a card.

A way is the recipe with a few keys changed. `CHEAPER` and `FASTER` list the changes, in the order in which they
are combined; those that give another result say so.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import log
from typing import Literal

from dualign.cost.cards import Cluster
from dualign.cost.lora_shape import LoraShape
from dualign.cost.stage_shape import part_of_rows
from dualign.cost.training_shape import TrainingShape

Engine = Literal["zero2", "zero3", "fsdp2"]
_RANK = 16
_LESS = 0.95
"""A way is cheaper if it needs less than this share of another's memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One process's part of a step, and what makes it so."""

    training: TrainingShape
    changes: tuple[str, ...] = ()
    """keys and values that differ from the recipe"""
    other_result: str = ""
    """how the model would differ, in words; "" if it wouldn't"""
    answers: int = 1
    """of a row, each with its prompt: 2 of pairs"""
    parts: int = 1
    """processes that share a row (DeepSpeed's Ulysses)"""
    heads: int = 0
    """of attention, which processes that share a row divide; 0 where they can't"""

    @property
    def process(self) -> TrainingShape:
        """The part of one process, whose rows may be parts of rows."""
        return part_of_rows(self.training, self.parts)

    def with_change(self, training: TrainingShape, change: str, result: str = "") -> "Way":
        results = [text for text in (self.other_result, result) if text]
        return replace(
            self,
            training=training,
            changes=(*self.changes, change),
            other_result="; ".join(results),
        )


Move = Callable[[Way, Cluster], Iterator[Way]]


def ways(start: Way, cluster: Cluster, moves: tuple[Move, ...]) -> list[Way]:
    """Return the start, and every combination of moves from it."""
    combined = [start]
    for move in moves:
        combined += [other for way in combined for other in move(way, cluster)]
    return combined


def _checkpointing(way: Way, _: Cluster) -> Iterator[Way]:
    if not way.training.gradient_checkpointing:
        training = replace(way.training, gradient_checkpointing=True)
        yield way.with_change(training, "train.gradient_checkpointing: true")


def _without_checkpointing(way: Way, _: Cluster) -> Iterator[Way]:
    if way.training.gradient_checkpointing:
        training = replace(way.training, gradient_checkpointing=False)
        yield way.with_change(training, "train.gradient_checkpointing: false")


def _all_cards(way: Way, cluster: Cluster) -> Iterator[Way]:
    """Spread the rows of a step of one process over all cards."""
    if way.training.world_size > 1 or cluster.cards == 1 or way.training.quantization:
        return
    for engine in ("zero2", "zero3"):
        spread = _spread(way, cluster.cards)
        if spread is not None:
            change = f"launch: {engine}.yaml with {cluster.cards} processes"
            yield way.with_change(with_engine(spread, engine), change)


def _more_shards(
    way: Way, _: Cluster, *, towards: tuple[Engine, ...] = ("zero3",)
) -> Iterator[Way]:
    training = way.training
    if training.world_size == 1 or training.quantization:
        return
    for engine in towards:
        if training.sharding in (None, "zero2") and engine != training.sharding:
            yield way.with_change(with_engine(training, engine), f"launch: {engine}.yaml")


def _fewer_shards(way: Way, _: Cluster) -> Iterator[Way]:
    if way.training.sharding in ("zero3", "fsdp2"):
        yield way.with_change(with_engine(way.training, "zero2"), "launch: zero2.yaml")


def _smaller_batches(way: Way, _: Cluster) -> Iterator[Way]:
    """Halve the rows of a forward pass, and accumulate twice as many: the same step."""
    training = way.training
    rows = training.micro_batch // way.answers
    times = 2
    while rows > 1 and rows % 2 == 0:
        rows //= 2
        steps = training.gradient_accumulation * times
        smaller = replace(
            training,
            micro_batch=rows * way.answers,
            tokens_per_micro_batch=_divided(training.tokens_per_micro_batch, times),
            gradient_accumulation=steps,
        )
        change = f"train.per_device_train_batch_size: {rows}, gradient_accumulation_steps: {steps}"
        yield way.with_change(smaller, change)
        times *= 2


def _tiles(way: Way, _: Cluster) -> Iterator[Way]:
    training = replace(way.training, tiled_mlp=True)
    if training.in_tiles and not way.training.tiled_mlp:
        yield way.with_change(training, "tiled_mlp: true")


def _shared_rows(way: Way, cluster: Cluster) -> Iterator[Way]:
    """Let 2, 4 or 8 processes of a node share a row, and accumulate as many times more."""
    training = way.training
    alone = training.micro_batch == way.answers and training.reference != "copy"
    if way.parts > 1 or training.sharding != "zero3" or not (alone and way.heads):
        return
    for parts in (2, 4, 8):
        if any(size % parts for size in (way.heads, cluster.per_node, training.world_size)):
            return
        steps = training.gradient_accumulation * parts
        shared = replace(training, gradient_accumulation=steps)
        change = (
            f"launch: ulysses.yaml with sp_size {parts}, dp_replicate_size "
            f"{training.world_size // parts}; train.gradient_accumulation_steps: {steps}"
        )
        yield replace(way.with_change(shared, change), parts=parts)


def _eight_bits(way: Way, _: Cluster) -> Iterator[Way]:
    if way.training.sharding is None and way.training.optimizer.startswith("adamw_torch"):
        training = replace(way.training, optimizer="adamw_8bit")
        yield way.with_change(training, "train.optim: adamw_8bit", "its states are rounded")


def _adapter(way: Way, _: Cluster) -> Iterator[Way]:
    """Train an adapter in place of every weight, and over a base in 4 bits."""
    if way.training.lora is None:
        training = replace(
            way.training,
            lora=LoraShape(r=_RANK),
            master_weights=way.training.master_weights and not _is_halved(way.training),
            reference="adapter" if way.training.reference == "copy" else way.training.reference,
        )
        result = "an adapter is trained, not every weight"
        way = way.with_change(training, f"lora: {{r: {_RANK}}}", result)
        yield way
    if way.training.quantization is None and way.training.sharding is None:
        nf4 = replace(way.training, quantization="nf4")
        yield way.with_change(nf4, "quantization: nf4", "the base is rounded to 4 bits")


def _is_halved(training: TrainingShape) -> bool:
    """Return whether `dtype: auto` would halve the weights, if they were frozen: not those of an engine."""
    return training.sharding is None and training.dtype == "bfloat16"


CHEAPER: tuple[Move, ...] = (
    _checkpointing,
    _all_cards,
    _more_shards,
    _smaller_batches,
    _tiles,
    _shared_rows,
    _eight_bits,
    _adapter,
)
FASTER: tuple[Move, ...] = (
    _without_checkpointing,
    _fewer_shards,
    partial(_more_shards, towards=("zero2",)),
)


def cheaper(start_bytes: int, candidates: "list[tuple[Way, int, float]]") -> list[Way]:
    """Return the next two ways of less memory than the start's, the second with less than the first.

    Of each, the one that keeps the result, then the fastest, then that with the fewest changes.

    Args:
        candidates: ways that fit, with bytes and with card-seconds of a token.
    """
    chosen: list[Way] = []
    bound = float(start_bytes)
    for _ in range(2):
        lower = [entry for entry in candidates if entry[1] < _LESS * bound]
        if not lower:
            break
        best = min(lower, key=_rank)
        chosen.append(best[0])
        bound = best[1]
    return chosen


def _rank(entry: tuple[Way, int, float]) -> tuple[bool, int, int, int]:
    way, size, seconds = entry
    # Times within 2 % are alike: the model of them isn't finer.
    return bool(way.other_result), round(50 * log(seconds)), len(way.changes), size


def with_engine(training: TrainingShape, engine: Engine) -> TrainingShape:
    """Return a step whose weights an engine holds: in 2 bytes, with float32 copies of what is trained."""
    halves = training.dtype != "float32"
    return replace(training, sharding=engine, master_weights=halves)


def _spread(way: Way, processes: int) -> TrainingShape | None:
    """Return one process's part of the same step of one process; None if its rows can't be shared."""
    training = way.training
    rows = training.micro_batch // way.answers
    own, rest = divmod(rows * training.gradient_accumulation, processes)
    batch = min(rows, own)
    if rest or not own or own % batch:
        return None
    return replace(
        training,
        world_size=processes,
        micro_batch=batch * way.answers,
        tokens_per_micro_batch=_scaled(training.tokens_per_micro_batch, batch, rows),
        gradient_accumulation=own // batch,
    )


def _divided(tokens: int | None, times: int) -> int | None:
    return None if tokens is None else -(-tokens // times)


def _scaled(tokens: int | None, rows: int, of: int) -> int | None:
    return None if tokens is None else -(-tokens * rows // of)


def smallest_world(way: Way, fits: Callable[[Way], bool], *, per_node: int) -> int | None:
    """Return how many cards hold a way under ZeRO-3, in doublings up to 1,024; None if none do."""
    if way.training.quantization:
        return None
    world = max(2 * way.training.world_size, per_node)
    while world <= 1024:
        training = replace(with_engine(way.training, "zero3"), world_size=world)
        if fits(replace(way, training=training)):
            return world
        world *= 2
    return None
