"""Training time: floating-point operations of a step over a device's throughput.

Assumptions: a matrix multiplication with N weights costs 2 N operations per token. The backward
pass costs the same for the gradient of the input, and again for the gradient of the weight.
Attention adds its tokens x tokens products. Devices reach `_UTILIZATION` of their peak. Loading, tokenizing,
evaluation and saving aren't counted.
"""

import re
from collections.abc import Mapping
from time import perf_counter

from dualign.cost.model_shape import ModelShape
from dualign.cost.training_shape import TrainingShape

# Published peak of dense bfloat16 operations per second, by a word of the device's name.
_DEVICE_FLOPS: Mapping[str, float] = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "4090": 165e12,
    "L4": 121e12,
}
# Assumed share of the peak, common for dense models with long rows.
_UTILIZATION = 0.4


def training_flops(shape: ModelShape, training: TrainingShape, tokens: int) -> int:
    """Count the operations of training on `tokens` tokens, recomputation and reference included."""
    forward = _forward_flops(shape, training)
    adapter = 2 * training.lora.parameters(shape) if training.lora else 0
    # Frozen weights need the gradient of their input only.
    passes = 2 if training.lora else 3
    recomputed = 1 if training.gradient_checkpointing else 0
    # The head isn't checkpointed, but TRL's backward pass recomputes its logits.
    head = 2 * shape.embedding_parameters
    total = (passes + recomputed) * forward + (passes + 1) * head + (3 + recomputed) * adapter
    if training.reference in ("adapter", "copy"):
        total += forward + head
    return tokens * total


def _forward_flops(shape: ModelShape, training: TrainingShape) -> int:
    """Count the operations of all layers per token.

    Attention counts half of its square, because a token sees only those before it.
    """
    attention = 2 * shape.attention_width * training.max_tokens
    return shape.layers * (2 * shape.layer_linear_parameters + attention)


def device_throughput(name: str) -> float | None:
    """Return the expected operations per second of a GPU by its name; None if it is unknown."""
    peak = peak_flops(name)
    return None if peak is None else _UTILIZATION * peak


def peak_flops(name: str) -> float | None:
    """Return the published dense bfloat16 operations per second of a GPU by its name."""
    words = re.findall(r"[A-Za-z0-9]+", name)
    return next((flops for device, flops in _DEVICE_FLOPS.items() if device in words), None)


def estimate_seconds(flops: int, throughput: float | None, *, devices: int = 1) -> float | None:
    """Return the seconds for `flops` on `devices` devices; None if the throughput is unknown."""
    return None if throughput is None else flops / (throughput * devices)


def cpu_throughput(width: int = 1024, count: int = 10) -> float:
    """Return this CPU's float32 operations per second in the fastest of `count` matrix products.

    The fastest is the one that other processes have disturbed least. Imports torch.
    """
    import torch

    left_NN, right_NN = torch.ones(width, width), torch.ones(width, width)
    seconds = []
    for _ in range(count + 1):
        start = perf_counter()
        left_NN @ right_NN
        seconds.append(perf_counter() - start)
    return 2 * width**3 / min(seconds[1:])
