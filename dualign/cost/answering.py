"""Time of a stage that asks models, on a card: generation is bound by the memory's bandwidth.

Each step of a batch reads all weights and the keys and values of its rows, and writes a token of each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from dualign.cost.cards import Card, Cluster
from dualign.cost.measured import base_model
from dualign.cost.model_shape import ModelShape, shape_of
from dualign.cost.plan import resolve_references
from dualign.cost.step_time import LAYER_START
from dualign.engine import StageStatus
from dualign.errors import DualignError
from dualign.generation.config import Endpoint, endpoint_of, model_label
from dualign.generation.estimate import Demand
from dualign.recipe import Recipe, StageEntry, stage_of

# Share of the memory's bandwidth that reading weights reaches. Assumed, not measured.
_BANDWIDTH_SHARE = 0.7
# vLLM's defaults: its share of the card, and the rows of a batch.
_VLLM_MEMORY, _VLLM_ROWS = 0.9, 256
_WEIGHT_BYTES = _CACHE_BYTES = 2

Asked = Sequence[tuple[str | Endpoint, Demand]]


@runtime_checkable
class Asking(Protocol):
    """A stage's dataclass that knows what it asks of which model."""

    batch_tokens: int
    backend: Any

    def demands(self) -> Asked: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerTime:
    """Seconds at most, on one card."""

    rows: int
    """that a batch holds"""
    reading: float
    """prompts"""
    writing: float
    """answers, each as long as its limit"""

    @property
    def seconds(self) -> float:
        return self.reading + self.writing


def answer_time(
    shape: ModelShape, demand: Demand, card: Card, *, batch_tokens: int, backend: str
) -> AnswerTime:
    """Return the time in which one card answers all requests, each to its limit.

    Args:
        batch_tokens: tokens in memory at once; vLLM takes what the card has.
    """
    requests = max(1, demand.requests)
    prompt, limit = demand.prompt_tokens / requests, demand.answer_tokens / requests
    weights = _WEIGHT_BYTES * shape.parameters
    cached = 2 * shape.layers * shape.kv_width * _CACHE_BYTES
    room = batch_tokens / (prompt + limit)
    start = shape.layers * LAYER_START  # vLLM replays what it has started once
    if backend == "vllm":
        memory = max(0.0, _VLLM_MEMORY * card.memory - weights)
        room, start = min(_VLLM_ROWS, memory / (cached * (prompt + limit))), 0.0
    rows = max(1, min(requests, int(room)))
    read = weights + rows * cached * (prompt + limit / 2)
    step = read / (_BANDWIDTH_SHARE * card.bandwidth_gbs * 1e9) + start
    operations = 2 * shape.layers * shape.layer_linear_parameters * demand.prompt_tokens
    return AnswerTime(
        rows=rows,
        reading=operations / card.rate("bfloat16" if card.bfloat16 else "float16"),
        writing=demand.answer_tokens / rows * step,
    )


def answering(
    recipe: Recipe, entry: StageEntry, statuses: list[StageStatus], cluster: Cluster
) -> Iterator[str]:
    """Yield a line for each model of a stage: requests, rows at once, and the time at most."""
    stage: Asking
    stage, _ = resolve_references(entry, statuses)
    try:
        demands = stage.demands()
    except DualignError as error:
        yield f"what it asks isn't known: {error}"
        return
    if not demands:
        yield "what it asks is known when the stages before it have run"
        return
    stages = {status.entry.name: status.entry for status in statuses}
    for model, demand in demands:
        if endpoint_of(model):
            yield f"{model_label(model)}: an endpoint answers, not these cards"
            continue
        parent = stage_of(str(model))
        base = base_model(stages[parent], stages) if parent else str(model)
        notes: list[str] = []
        shape = shape_of(base, recipe.file.parent, notes)
        if shape is None:
            yield from notes
            continue
        time = answer_time(
            shape,
            demand,
            cluster.card,
            batch_tokens=stage.batch_tokens,
            backend=stage.backend,
        )
        yield _in_words(str(model), demand, time, stage.backend)
    if cluster.cards > 1:
        yield f"one card works, the other {cluster.cards - 1} don't: such a stage isn't launched"


def _in_words(model: str, demand: Demand, time: AnswerTime, backend: str) -> str:
    starts = "" if backend == "vllm" else f", {LAYER_START * 1e3:g} ms a layer to start a step"
    return (
        f"{model}: {demand.requests:,} answers of {demand.answer_tokens:,} tokens at most, "
        f"{time.rows:,} rows at once: at most {hours(time.seconds)} on one card ({backend}; assumed: "
        f"{_BANDWIDTH_SHARE:.0%} of the memory's bandwidth, 2 bytes a weight{starts}; not measured)"
    )


def hours(seconds: float) -> str:
    """Return a time in words of a fitting unit."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
