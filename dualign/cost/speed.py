"""Training time: floating-point operations of a step over a device's throughput.

Assumptions: a matrix multiplication with N weights costs 2 N operations per token. The backward
pass costs the same for the gradient of the input, and again for the gradient of the weight.
Attention adds its tokens x tokens products. GPUs reach a share of their published rate (`cards`).
Loading, tokenizing, evaluation and saving aren't counted.
"""

from time import perf_counter

from dualign.cost.cards import card_of_device
from dualign.cost.model_shape import ModelShape
from dualign.cost.training_shape import TrainingShape


def training_flops(shape: ModelShape, training: TrainingShape, tokens: int) -> int:
    """Count the operations of training on `tokens` tokens, recomputation and reference included."""
    return layer_flops(shape, training, tokens) + attention_flops(shape, training, tokens)


def layer_flops(shape: ModelShape, training: TrainingShape, tokens: int) -> int:
    """Count the operations of everything but attention's products of queries, keys and values."""
    forward = 2 * shape.layers * shape.layer_linear_parameters
    adapter = 2 * training.lora.parameters(shape) if training.lora else 0
    # Frozen weights need the gradient of their input only.
    passes = 2 if training.lora else 3
    recomputed = 1 if training.gradient_checkpointing else 0
    # The head isn't checkpointed, but TRL's backward pass recomputes its logits.
    head = 2 * shape.embedding_parameters
    total = (passes + recomputed) * forward + (passes + 1) * head + (3 + recomputed) * adapter
    if training.reference in ("adapter", "copy"):
        total += forward + head
    if training.in_tiles:  # a tile's products are made again when its gradient is
        total += 2 * shape.layers * shape.mlp_parameters
    return tokens * total


def attention_flops(shape: ModelShape, training: TrainingShape, tokens: int) -> int:
    """Count the operations of attention's products.

    They are half of the square, because a token sees only those before it; a row counts as one document.
    An adapter saves none: there are no weights here whose gradient would be left out.
    """
    forward = 2 * shape.layers * shape.attention_width * training.max_tokens
    passes = 4 if training.gradient_checkpointing else 3
    return tokens * forward * (passes + (training.reference in ("adapter", "copy")))


def device_throughput(name: str) -> float | None:
    """Return the expected operations per second of a GPU by its name; None if it is unknown."""
    card = card_of_device(name)
    return None if card is None else card.rate("bfloat16" if card.bfloat16 else "float16")


def peak_flops(name: str) -> float | None:
    """Return the published dense operations per second of a GPU, in half precision, by its name."""
    card = card_of_device(name)
    return None if card is None else card.half_tflops * 1e12


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
