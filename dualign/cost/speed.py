"""How long training takes: floating-point operations of a step over a device's throughput.

Assumptions: a matrix multiplication with N weights costs 2 N operations per token; the backward pass costs the same for
the gradient of the input and again for the gradient of the weight; attention adds its tokens x tokens products.
Devices reach UTILISATION of their peak. Loading, tokenising, evaluation and saving aren't counted.
"""

import re
from collections.abc import Mapping
from time import perf_counter

from dualign.cost.model_shape import ModelShape
from dualign.cost.training_shape import TrainingShape

# Peak dense operations per second in bfloat16, as published, by a word of the device's name.
DEVICE_FLOPS: Mapping[str, float] = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "4090": 165e12,
    "L4": 121e12,
}
# Share of the peak that training reaches: an assumption, common for dense models with long rows.
UTILISATION = 0.4


def training_flops(shape: ModelShape, training: TrainingShape, tokens: int) -> int:
    """Operations to train on `tokens` tokens: forward, backward, recomputation, and the reference if it runs."""
    forward = _forward_flops(shape, training)
    adapter = 2 * training.lora.parameters(shape) if training.lora else 0
    # Frozen weights need the gradient of their input only.
    passes = 2 if training.lora else 3
    again = 1 if training.gradient_checkpointing else 0
    # The head isn't checkpointed, but TRL's backward computes its logits anew.
    head = 2 * shape.embedding_parameters
    total = (passes + again) * forward + (passes + 1) * head + (3 + again) * adapter
    if training.reference in ("adapter", "copy"):
        total += forward + head
    return tokens * total


def _forward_flops(shape: ModelShape, training: TrainingShape) -> int:
    """Of the layers, per token. Attention counts half its square: a token sees those before it."""
    attention = 2 * shape.attention_width * training.max_tokens
    return shape.layers * (2 * shape.layer_linear_parameters + attention)


def device_throughput(name: str) -> float | None:
    """Operations per second to expect of a GPU by its name; None if it isn't known."""
    words = re.findall(r"[A-Za-z0-9]+", name)
    peak = next((flops for device, flops in DEVICE_FLOPS.items() if device in words), None)
    return None if peak is None else UTILISATION * peak


def estimate_seconds(flops: int, throughput: float | None, *, devices: int = 1) -> float | None:
    """Seconds for `flops` on `devices` devices; None when the throughput isn't known."""
    return None if throughput is None else flops / (throughput * devices)


def cpu_throughput(width: int = 512, seconds: float = 0.2) -> float:
    """Operations per second of this CPU in a float32 matrix multiplication, measured. Imports torch."""
    import torch

    left_NN, right_NN = torch.ones(width, width), torch.ones(width, width)
    left_NN @ right_NN
    start, count = perf_counter(), 0
    while perf_counter() - start < seconds:
        left_NN @ right_NN
        count += 1
    return count * 2 * width**3 / (perf_counter() - start)
