"""Seconds of one optimizer step on a cluster: computing, sending, the optimizer.

A model of what a data sheet says, held against published throughputs in docs/scale.md.
"""

from dataclasses import dataclass, replace

from dualign.cost.cards import Cluster
from dualign.cost.communication import sequence_traffic, traffic
from dualign.cost.model_shape import ModelShape
from dualign.cost.speed import attention_flops, layer_flops
from dualign.cost.training_shape import TrainingShape

# FlashAttention's backward pass has five products to the forward pass's two; operations count four.
_RECOMPUTED_SCORES = 3.5 / 3
# AdamW reads gradient, weight and two states and writes three of them, in float32, and the 2-byte weight.
_OPTIMIZER_BYTES = 30
# Seconds in which a CPU starts the kernels of a layer, some 25, in one pass. Assumed.
LAYER_START = 0.0007
# Seconds from one process to the next in a ring. Assumed.
_HOP = 5e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Seconds of one optimizer step; sending beside the layers counts where it takes longer."""

    layers: float
    attention: float
    beside: float
    """sending while layers compute"""
    after: float
    """sending when nothing computes"""
    optimizer: float
    starting: float
    """the CPU starts the kernels of layers, while the card computes those before"""

    @property
    def computing(self) -> float:
        return max(self.layers + self.attention, self.starting)

    @property
    def seconds(self) -> float:
        return max(self.computing, self.beside) + self.after + self.optimizer

    @property
    def waiting(self) -> float:
        """Share of the step in which a card computes nothing."""
        return 1 - (self.layers + self.attention + self.optimizer) / self.seconds


def step_time(
    shape: ModelShape,
    training: TrainingShape,
    cluster: Cluster,
    *,
    tokens: int,
    arithmetic: str,
    span: float | None = None,
    parts: int = 1,
) -> StepTime:
    """Return the time of a step.

    Args:
        tokens: of one process, in all micro-batches of the step.
        arithmetic: type in which matrices are multiplied.
        span: tokens of the documents that attention goes over; None: each row is one.
        parts: processes that share a row, on one node; attention waits for what they exchange.
    """
    card = cluster.card
    sent = traffic(shape, training)
    rate = cluster.link_rate(training.world_size)
    shards = training.world_size if training.sharding else 1
    states = training.trained_parameters(shape) / shards * _OPTIMIZER_BYTES
    seen = replace(training, max_tokens=max(1, round(span))) if span else training
    attention = attention_flops(shape, seen, tokens) * _RECOMPUTED_SCORES
    recomputes = training.gradient_checkpointing
    passes = (4 if recomputes else 3) * training.gradient_accumulation
    exchanged = sequence_traffic(shape, tokens * parts, parts, passes=3 if recomputes else 2)
    return StepTime(
        layers=layer_flops(shape, training, tokens) / card.rate(arithmetic),
        attention=attention / card.attention_rate(arithmetic),
        beside=sent.beside / rate + sent.rings * (training.world_size - 1) * _HOP,
        after=sent.after / rate + exchanged / cluster.link_rate(parts),
        optimizer=states / (card.bandwidth_gbs * 1e9),
        starting=shape.layers * passes * LAYER_START,
    )
