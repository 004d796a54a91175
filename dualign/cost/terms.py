"""The terms of the memory estimate, one function each: bytes, and the formula with its numbers filled in.

`shape` is the model's, `training` the step's. Every figure is for one process.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dualign.cost.activations import activations
from dualign.cost.model_shape import ModelShape
from dualign.cost.training_shape import TrainingShape
from dualign.errors import ConfigError

# NF4: half a byte per weight, an 8-bit scale per block of 64, a float32 scale per 256 of those (double quantisation).
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# bitsandbytes: a byte per state, a float32 scale per block of 256.
EIGHT_BIT = 1 + 4 / 256
# The tile that TRL's fused head projects at once: tokens x vocabulary entries.
TILE_TOKENS, TILE_VOCAB = 4096, 32768
# Without Triton (CPU), the head's backward works on copies of the tile: at most 7 in float32 and one of booleans.
TILE_COPIES_BYTES = 7 * 4 + 1
# Elements that DeepSpeed collects before it reduces them (reduce_bucket_size, its default).
ZERO_BUCKET = 500_000_000
# A CPU process that has torch, transformers, trl and peft loaded and has trained a tiny model: measured (560 MB).
# glibc's heap comes on top: with its default settings, measured peaks had 2 to 70 % more than the other terms.
CPU_FRAMEWORK = 560_000_000
# CUDA context, cuBLAS workspaces and allocator slack on the device: an assumption, not measured.
CUDA_FRAMEWORK = 1_000_000_000
# States per trained parameter that each optimiser keeps, and bytes of one (None: as the parameter).
OPTIMIZERS: Mapping[str, tuple[int, float | None]] = {
    "sgd": (0, None),
    "rmsprop": (1, None),
    "adagrad": (1, None),
    "adamw_torch": (2, None),
    "adamw_torch_fused": (2, None),
    "paged_adamw_32bit": (2, 4),
    "adamw_8bit": (2, EIGHT_BIT),
    "adamw_bnb_8bit": (2, EIGHT_BIT),
    "paged_adamw_8bit": (2, EIGHT_BIT),
    "lion_32bit": (1, 4),
    "paged_lion_32bit": (1, 4),
    "lion_8bit": (1, EIGHT_BIT),
    "paged_lion_8bit": (1, EIGHT_BIT),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """A number of bytes and where it comes from."""

    bytes: float
    how: str


def parameter_sum(*parts: tuple[int, float, str], shards: int = 1) -> Term:
    """count x bytes (what) + ..., divided among processes."""
    size = sum(count * each for count, each, _ in parts) / shards
    how = " + ".join(
        f"{count:,} x {each:.5g} B ({what})" for count, each, what in parts if count * each
    )
    return Term(bytes=size, how=f"({how}) / {shards} processes" if shards > 1 else how)


def weights(shape: ModelShape, training: TrainingShape) -> Term:
    """The model, and the adapter if there is one."""
    shards = training.world_size if training.sharding in ("zero3", "fsdp2") else 1
    term = parameter_sum(*_base_weights(shape, training), *_adapter(shape, training), shards=shards)
    if shards == 1:
        return term
    gathered = 2 * max(shape.layer_parameters, shape.embedding_parameters) * training.dtype_bytes
    return Term(
        bytes=term.bytes + gathered, how=f"{term.how} + 2 gathered modules {gathered / 1e9:.2f} GB"
    )


def _base_weights(shape: ModelShape, training: TrainingShape) -> list[tuple[int, float, str]]:
    linear = shape.layers * shape.layer_linear_parameters
    rest = shape.parameters - linear
    if training.quantization == "nf4":
        return [(linear, NF4_BYTES, "nf4"), (rest, training.residual_bytes, "not quantised")]
    if not training.autocast:
        return [(shape.parameters, training.dtype_bytes, training.dtype)]
    # A frozen weight is cast when it is used; one that trains is cast once and kept for the whole forward pass.
    once = training.lora is not None and training.gradient_checkpointing
    copied = shape.layer_linear_parameters if once else linear
    return [(shape.parameters, 4, "float32"), (copied, 2, f"{training.dtype} copies by autocast")]


def _adapter(shape: ModelShape, training: TrainingShape) -> list[tuple[int, float, str]]:
    return (
        [(training.lora.parameters(shape), training.adapter_bytes, "adapter")]
        if training.lora
        else []
    )


def master_weights(shape: ModelShape, training: TrainingShape) -> Term:
    """float32 weights that a sharding engine keeps beside the 2-byte ones."""
    if not training.master_weights or training.autocast:
        return Term(bytes=0, how="")
    return parameter_sum(
        (training.trained_parameters(shape), 4, "float32 masters"), shards=training.world_size
    )


def gradients(shape: ModelShape, training: TrainingShape) -> Term:
    """One per trained parameter; ZeRO also holds a bucket that isn't reduced yet."""
    count, each = training.trained_parameters(shape), training.trained_bytes
    if training.sharding is None:
        return parameter_sum((count, each, "trained"))
    term = parameter_sum((count, each, "trained"), shards=training.world_size)
    if training.sharding == "fsdp2":
        return term
    bucket = min(count, ZERO_BUCKET) * each
    return Term(bytes=term.bytes + bucket, how=f"{term.how} + reduce bucket {bucket / 1e9:.2f} GB")


def optimizer(shape: ModelShape, training: TrainingShape) -> Term:
    """The optimiser's states."""
    if training.optimizer not in OPTIMIZERS:
        raise ConfigError(
            f"optim {training.optimizer!r}: memory is known for {', '.join(OPTIMIZERS)}; "
            "use one of them to get an estimate"
        )
    states, known = OPTIMIZERS[training.optimizer]
    each = states * (
        (4 if training.master_weights else training.trained_bytes) if known is None else known
    )
    count = training.trained_parameters(shape)
    # transformers keeps the states of embeddings in 32 bits.
    embedded = shape.embedding_parameters if known == EIGHT_BIT and training.lora is None else 0
    parts = [
        (count - embedded, each, f"{states} states, {training.optimizer}"),
        (embedded, states * 4, "embedding"),
    ]
    return parameter_sum(*parts, shards=training.world_size if training.sharding else 1)


def reference(shape: ModelShape, training: TrainingShape) -> Term:
    """A frozen copy; the adapter switched off needs nothing, cached log-probabilities next to nothing."""
    if training.reference != "copy":
        return Term(bytes=0, how="")
    shards = training.world_size if training.sharding in ("zero3", "fsdp2") else 1
    return parameter_sum((shape.parameters, training.residual_bytes, "frozen copy"), shards=shards)


def kept_activations(shape: ModelShape, training: TrainingShape) -> Term:
    """What the forward pass leaves for the backward pass."""
    sizes = activations(shape, training)
    one = sizes.layer_input if training.gradient_checkpointing else sizes.layer
    what = "layer inputs, checkpointed" if training.gradient_checkpointing else "layers"
    each = one / training.tokens
    how = f"{shape.layers} {what} x {training.tokens:,} tokens x {each:,.0f} B + ends {sizes.ends / 1e6:.0f} MB"
    return Term(bytes=sizes.kept(shape, training), how=how)


def logits(shape: ModelShape, training: TrainingShape) -> Term:
    """TRL's fused head in its backward pass: one tile of logits, never all of them, and its input's gradient."""
    rows = min(training.tokens, TILE_TOKENS)
    if training.device == "cuda":
        columns, each = TILE_VOCAB, training.dtype_bytes
    else:
        columns, each = min(shape.vocab, TILE_VOCAB), training.dtype_bytes + TILE_COPIES_BYTES
    hidden = training.tokens * shape.hidden * 4
    how = f"tile {rows:,} tokens x {columns:,} entries x {each} B + {training.tokens:,} x {shape.hidden:,} x 4 B"
    return Term(bytes=rows * columns * each + hidden, how=how)


def head_gradient(shape: ModelShape, training: TrainingShape) -> Term:
    """The head accumulates its gradient in float32, then gives it the weight's type."""
    if training.lora:
        return Term(bytes=0, how="")
    each = 4 if training.trained_bytes == 4 else 4 + training.trained_bytes
    return parameter_sum((shape.embedding_parameters, each, "output head"))


def workspace(shape: ModelShape, training: TrainingShape) -> Term:
    """The layer that is being differentiated: recomputed if checkpointed, its gradients, its dequantised weight."""
    again = activations(shape, training).layer if training.gradient_checkpointing else 0
    flowing = training.tokens * (2 * shape.intermediate + 2 * shape.hidden) * training.dtype_bytes
    largest = max(inputs * outputs for inputs, outputs in shape.linears().values())
    dense = largest * training.dtype_bytes if training.quantization else 0
    # DoRA computes the norm of each merged weight: the product of A and B, the sum, an identity matrix.
    dora = 3 * largest * 4 if training.lora and training.lora.dora else 0
    how = f"a layer: recomputed {again / 1e6:.0f} MB + gradients {flowing / 1e6:.0f} MB"
    how += f" + weights {(dense + dora) / 1e6:.0f} MB" if dense + dora else ""
    return Term(bytes=again + flowing + dense + dora, how=how)


def step(shape: ModelShape, training: TrainingShape) -> Term:
    """Temporaries of an optimiser that isn't fused: per tensor on CPU, for all tensors at once on CUDA."""
    if training.optimizer != "adamw_torch":
        return Term(bytes=0, how="")
    count = training.trained_parameters(shape)
    if training.device == "cuda":
        shards = training.world_size if training.sharding else 1
        return parameter_sum((count, training.trained_bytes, "not fused"), shards=shards)
    largest = min(count, max(shape.embedding_parameters, shape.hidden * shape.intermediate))
    return parameter_sum((largest, 2 * training.trained_bytes, "largest tensor, not fused"))


def saving(shape: ModelShape, training: TrainingShape) -> Term:
    """Whole copies of the weights that exist only while saving."""
    return parameter_sum(
        (training.save_copies * shape.parameters, training.dtype_bytes, "copies while saving")
    )


def framework(_: ModelShape, training: TrainingShape) -> Term:
    """What the process needs before there is a model."""
    if training.device == "cuda":
        return Term(bytes=CUDA_FRAMEWORK, how="CUDA context and allocator (assumed)")
    return Term(
        bytes=CPU_FRAMEWORK,
        how="Python and libraries (glibc's heap may add up to 70 % to the other terms)",
    )
