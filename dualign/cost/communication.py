"""What the processes of a stage send each other in one optimizer step, by the engine that shards it.

Bytes are those that one process sends in a ring of n: an all-gather or a reduce-scatter of S bytes sends
S (n - 1) / n, an all-reduce twice as much.
"""

from dataclasses import dataclass

from dualign.cost.model_shape import ModelShape
from dualign.cost.training_shape import TrainingShape


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Bytes that one process sends in one optimizer step."""

    beside: float = 0
    """while layers compute: they take time only where they take longer than the layers"""
    after: float = 0
    """when nothing computes"""
    rings: int = 0
    """all-gathers and reduce-scatters, each with a hop from process to process"""
    formula: str = ""


def traffic(shape: ModelShape, training: TrainingShape) -> Traffic:
    """Return what a process sends for weights and gradients."""
    world = training.world_size
    if world == 1:
        return Traffic()
    share = (world - 1) / world
    trained = training.trained_parameters(shape)
    gradients = trained * training.trained_bytes
    weights = shape.parameters * training.dtype_bytes
    steps = training.gradient_accumulation
    ring = f"{world - 1}/{world}"
    if training.sharding is None:
        return Traffic(
            beside=2 * share * gradients,
            formula=f"2 x {ring} x gradients {_gb(gradients)}, once a step",
        )
    if training.sharding == "zero2":
        updated = trained * training.dtype_bytes
        return Traffic(
            beside=steps * share * gradients,
            after=share * updated,
            formula=f"{ring} x ({steps} x gradients {_gb(gradients)} + new weights {_gb(updated)})",
        )
    # Weights come for the forward pass and again for the backward pass; a frozen copy has the first alone.
    passes = 3 if training.reference == "copy" else 2
    if training.sharding == "zero3":
        return Traffic(
            beside=steps * share * (passes * weights + gradients),
            rings=steps * (passes + 1) * shape.layers,
            formula=(
                f"{steps} x {ring} x ({passes} x weights {_gb(weights)} + gradients {_gb(gradients)})"
            ),
        )
    reduced = trained * training.dtype_bytes
    return Traffic(
        beside=share * (steps * passes * weights + reduced),
        rings=(steps * passes + 1) * shape.layers,
        formula=(
            f"{ring} x ({steps} x {passes} x weights {_gb(weights)} + gradients {_gb(reduced)})"
        ),
    )


def sequence_traffic(
    shape: ModelShape, tokens: int, processes: int, *, dtype_bytes: int = 2, passes: int = 3
) -> float:
    """Return the bytes that one process sends for attention over a row that is split (Ulysses).

    Queries, keys, values and outputs change from tokens to heads and back in each layer, in the forward
    pass, its repetition under gradient checkpointing, and the backward pass.

    Args:
        tokens: of the whole row.
        processes: that share it.
        passes: 3 with gradient checkpointing, else 2.
    """
    width = 2 * shape.attention_width + 2 * shape.kv_width
    own = tokens / processes
    return passes * shape.layers * own * width * dtype_bytes * (processes - 1) / processes


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
