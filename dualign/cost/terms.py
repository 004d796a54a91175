"""Terms of the memory estimate, one function each: bytes, and the formula with its numbers.

`shape` is the model's, `training` the step's. All figures are for one process.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dualign.cost.activations import activations
from dualign.cost.model_shape import ModelShape
from dualign.cost.training_shape import TrainingShape
from dualign.errors import ConfigError
from dualign.training.config import TILE_TOKENS

# NF4 with double quantization: half a byte per weight, an 8-bit scale per block of 64, and a
# float32 scale per 256 of those.
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# bitsandbytes: a byte per state, a float32 scale per block of 256.
_EIGHT_BIT = 1 + 4 / 256
# Elements that DeepSpeed collects before it reduces them (default of reduce_bucket_size).
_ZERO_BUCKET = 500_000_000
# Measured: a CPU process with torch, transformers, trl and peft that has trained a tiny model.
# glibc's heap comes on top: with its defaults, measured peaks were 2 to 70 % above the other terms.
_CPU_FRAMEWORK = 560_000_000
# Assumed, not measured: CUDA context, cuBLAS workspaces and allocator slack.
_CUDA_FRAMEWORK = 1_000_000_000
# Optimizer -> states per trained parameter, and bytes of one (None: as the parameter).
_OPTIMIZERS: Mapping[str, tuple[int, float | None]] = {
    "sgd": (0, None),
    "rmsprop": (1, None),
    "adagrad": (1, None),
    "adamw_torch": (2, None),
    "adamw_torch_fused": (2, None),
    "paged_adamw_32bit": (2, 4),
    "adamw_8bit": (2, _EIGHT_BIT),
    "adamw_bnb_8bit": (2, _EIGHT_BIT),
    "paged_adamw_8bit": (2, _EIGHT_BIT),
    "lion_32bit": (1, 4),
    "paged_lion_32bit": (1, 4),
    "lion_8bit": (1, _EIGHT_BIT),
    "paged_lion_8bit": (1, _EIGHT_BIT),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """Bytes, and the formula that gives them."""

    bytes: float
    formula: str


def _parameter_sum(*parts: tuple[int, float, str], shards: int = 1) -> Term:
    """Sum count x bytes over (count, bytes, label), divided among processes."""
    size = sum(count * width for count, width, _ in parts) / shards
    formula = " + ".join(
        f"{count:,} x {width:.5g} B ({label})" for count, width, label in parts if count * width
    )
    if shards > 1:
        formula = f"({formula}) / {shards} processes"
    return Term(bytes=size, formula=formula)


def weights(shape: ModelShape, training: TrainingShape) -> Term:
    """Weights of the model, and of the adapter if there is one."""
    shards = training.world_size if training.sharding in ("zero3", "fsdp2") else 1
    term = _parameter_sum(
        *_base_weights(shape, training), *_adapter(shape, training), shards=shards
    )
    if shards == 1:
        return term
    gathered = 2 * max(shape.layer_parameters, shape.embedding_parameters) * training.dtype_bytes
    formula = f"{term.formula} + 2 gathered modules {gathered / 1e9:.2f} GB"
    return Term(bytes=term.bytes + gathered, formula=formula)


def _base_weights(shape: ModelShape, training: TrainingShape) -> list[tuple[int, float, str]]:
    linear = shape.layers * shape.layer_linear_parameters
    rest = shape.parameters - linear
    if training.quantization == "nf4":
        return [(linear, _NF4_BYTES, "nf4"), (rest, training.residual_bytes, "not quantized")]
    if not training.autocast:
        return [(shape.parameters, training.dtype_bytes, training.dtype)]
    # A frozen weight is cast when it is used; a trained one once for the whole forward pass.
    one_layer = training.lora is not None and training.gradient_checkpointing
    copied = shape.layer_linear_parameters if one_layer else linear
    return [(shape.parameters, 4, "float32"), (copied, 2, f"{training.dtype} copies by autocast")]


def _adapter(shape: ModelShape, training: TrainingShape) -> list[tuple[int, float, str]]:
    if training.lora is None:
        return []
    sizes: list[tuple[int, float, str]] = [
        (training.lora.parameters(shape), training.adapter_bytes, "adapter")
    ]
    if training.lora.frozen_start:
        start = training.lora.adapter_parameters(shape)
        sizes.append((start, training.adapter_bytes, "its start, frozen"))
    return sizes


def master_weights(shape: ModelShape, training: TrainingShape) -> Term:
    """float32 weights that a sharding engine holds besides the 2-byte ones."""
    if not training.master_weights or training.autocast:
        return Term(bytes=0, formula="")
    return _parameter_sum(
        (training.trained_parameters(shape), 4, "float32 masters"), shards=training.world_size
    )


def gradients(shape: ModelShape, training: TrainingShape) -> Term:
    """One per trained parameter, and what the engine has not reduced yet: ZeRO a bucket, DDP a copy in
    buckets, FSDP2 whole gradients while they accumulate (accelerate's no_sync).
    """
    count, width = training.trained_parameters(shape), training.trained_bytes
    if training.sharding is None:
        buckets = count if training.world_size > 1 else 0
        return _parameter_sum((count, width, "trained"), (buckets, width, "buckets of DDP"))
    term = _parameter_sum((count, width, "trained"), shards=training.world_size)
    if training.sharding == "fsdp2":
        if training.gradient_accumulation == 1:
            return term
        whole = _parameter_sum((count, training.dtype_bytes, "whole while they accumulate"))
        return Term(bytes=term.bytes + whole.bytes, formula=f"{term.formula} + {whole.formula}")
    bucket = min(count, _ZERO_BUCKET) * width
    formula = f"{term.formula} + reduce bucket {bucket / 1e9:.2f} GB"
    return Term(bytes=term.bytes + bucket, formula=formula)


def optimizer(shape: ModelShape, training: TrainingShape) -> Term:
    """States of the optimizer."""
    if training.optimizer not in _OPTIMIZERS:
        raise ConfigError(
            f"optim {training.optimizer!r}: memory is known for {', '.join(_OPTIMIZERS)}; "
            "use one of them to get an estimate"
        )
    states, width = _OPTIMIZERS[training.optimizer]
    eight_bit = width == _EIGHT_BIT
    if width is None:
        width = 4 if training.master_weights else training.trained_bytes
    count = training.trained_parameters(shape)
    # transformers keeps the states of embeddings in 32 bits.
    embedding = shape.embedding_parameters if eight_bit and training.lora is None else 0
    parts = [
        (count - embedding, states * width, f"{states} states, {training.optimizer}"),
        (embedding, states * 4, "embedding"),
    ]
    return _parameter_sum(*parts, shards=training.world_size if training.sharding else 1)


def reference(shape: ModelShape, training: TrainingShape) -> Term:
    """Weights of a frozen copy. A disabled adapter and cached log-probabilities cost nothing."""
    if training.reference != "copy":
        return Term(bytes=0, formula="")
    shards = training.world_size if training.sharding in ("zero3", "fsdp2") else 1
    return _parameter_sum((shape.parameters, training.residual_bytes, "frozen copy"), shards=shards)


def saved_activations(shape: ModelShape, training: TrainingShape) -> Term:
    """Activations that the forward pass saves for the backward pass."""
    sizes = activations(shape, training)
    label = "layer inputs, checkpointed" if training.gradient_checkpointing else "layers"
    width = sizes.per_layer(training) / training.tokens
    formula = (
        f"{shape.layers} {label} x {training.tokens:,} tokens x {width:,.0f} B "
        f"+ outside the layers {sizes.outside_layers / 1e6:.0f} MB"
    )
    if not training.offloaded:
        return Term(bytes=sizes.saved(shape, training), formula=formula)
    moved = sizes.on_the_way(shape, training)
    return Term(
        bytes=moved, formula=f"the last of {formula}; the rest is moved to the host (assumed)"
    )


def on_host(shape: ModelShape, training: TrainingShape) -> Term:
    """Activations in the host's memory, until the backward pass."""
    if not training.offloaded:
        return Term(bytes=0, formula="")
    sizes = activations(shape, training)
    kept = "layer inputs" if training.gradient_checkpointing else "layers"
    formula = f"the host's memory, not the GPU's: {shape.layers} {kept}, pinned (assumed)"
    return Term(bytes=sizes.on_host(shape, training), formula=formula)


def logits(shape: ModelShape, training: TrainingShape) -> Term:
    """The head (`dualign/models/token_scores.py`): a tile of logits, its copy in steps that are logged, and
    the gradient of its input.
    """
    elements, width = (
        (1 << 26, training.dtype_bytes * 2 + 8) if training.device == "cuda" else (1 << 24, 8)
    )
    rows, columns = min(max(elements // shape.vocab, 64), 1024), shape.vocab
    rows = min(training.tokens, rows)
    hidden = training.tokens * shape.hidden * 4
    formula = (
        f"tile {rows:,} tokens x {columns:,} entries x {width} B "
        f"+ {training.tokens:,} x {shape.hidden:,} x 4 B"
    )
    return Term(bytes=rows * columns * width + hidden, formula=formula)


def head_gradient(shape: ModelShape, training: TrainingShape) -> Term:
    """Gradient of the head: accumulated in float32, then cast to the weight's type."""
    if training.lora and not training.lora.trains_head(shape):
        return Term(bytes=0, formula="")
    width = 4 if training.trained_bytes == 4 else 4 + training.trained_bytes
    return _parameter_sum((shape.embedding_parameters, width, "output head"))


def workspace(shape: ModelShape, training: TrainingShape) -> Term:
    """The layer being differentiated: recomputed activations, gradients, a dequantized weight."""
    sizes = activations(shape, training)
    recomputed = (sizes.layer if training.gradient_checkpointing else 0) + sizes.tile
    tile = min(training.tokens, TILE_TOKENS) if training.in_tiles else training.tokens
    elements = tile * 2 * shape.intermediate + training.tokens * 2 * shape.hidden
    gradients = elements * training.dtype_bytes
    largest = max(inputs * outputs for inputs, outputs in shape.linears().values())
    dense = largest * training.dtype_bytes if training.quantization else 0
    # DoRA takes the norm of each merged weight: product of A and B, sum, identity matrix.
    dora = 3 * largest * 4 if training.lora and training.lora.dora else 0
    formula = f"a layer: recomputed {recomputed / 1e6:.0f} MB + gradients {gradients / 1e6:.0f} MB"
    formula += f" + weights {(dense + dora) / 1e6:.0f} MB" if dense + dora else ""
    return Term(bytes=recomputed + gradients + dense + dora, formula=formula)


def step(shape: ModelShape, training: TrainingShape) -> Term:
    """Temporaries of an optimizer that isn't fused: per tensor on CPU, for all tensors on CUDA."""
    if training.optimizer != "adamw_torch":
        return Term(bytes=0, formula="")
    count = training.trained_parameters(shape)
    if training.device == "cuda":
        shards = training.world_size if training.sharding else 1
        return _parameter_sum((count, training.trained_bytes, "not fused"), shards=shards)
    largest = min(count, max(shape.embedding_parameters, shape.hidden * shape.intermediate))
    return _parameter_sum((largest, 2 * training.trained_bytes, "largest tensor, not fused"))


def saving(shape: ModelShape, training: TrainingShape) -> Term:
    """Copies of all weights that exist only while saving."""
    return _parameter_sum(
        (training.save_copies * shape.parameters, training.dtype_bytes, "copies while saving")
    )


def framework(_: ModelShape, training: TrainingShape) -> Term:
    """Memory of the process before the model is loaded."""
    if training.device == "cuda":
        return Term(bytes=_CUDA_FRAMEWORK, formula="CUDA context and allocator (assumed)")
    return Term(
        bytes=_CPU_FRAMEWORK,
        formula="Python and libraries (glibc's heap may add up to 70 % to the other terms)",
    )
