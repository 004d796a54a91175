"""Activation memory: what a decoder layer saves in its forward pass for the backward pass.

Derived from transformers' Llama, Qwen and SmolLM3 layers under PyTorch's autograd, with and without
PEFT's LoRA, and compared with what autograd saves (tests/cost/test_activations.py). Those of Gemma 3
are within 0.5 %, those of Phi-3 within 6 %. Bytes are counted per token and layer.
"""

from dataclasses import dataclass
from itertools import chain

from dualign.cost.lora_shape import LoraShape
from dualign.cost.model_shape import ModelShape
from dualign.cost.training_shape import TrainingShape
from dualign.training.config import TILE_TOKENS

# Modules that share an input, of attention and MLP: the norms' outputs, the attention output, the
# gated product.
_Readers = tuple[tuple[str, ...], ...]
_ATTENTION: _Readers = (("q_proj", "k_proj", "v_proj"), ("o_proj",))
_FUSED_ATTENTION: _Readers = (("qkv_proj",), ("o_proj",))
_MLP: _Readers = (("gate_proj", "up_proj"), ("down_proj",))
_FUSED_MLP: _Readers = (("gate_up_proj",), ("down_proj",))


# Default of TRL's max_fwd_stash_size: tensors of the forward pass that are still being moved. Without
# checkpointing they are fewer than a layer's.
_STASH = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Activations:
    """Bytes for one micro-batch."""

    layer: int
    """everything that one layer saves; of an MLP in tiles its input"""
    tile: int
    """what one tile of an MLP saves while it is differentiated; 0 for an MLP that isn't in tiles"""
    layer_input: int
    """what one layer saves under gradient checkpointing"""
    outside_layers: int
    """final norm, the head's input, rotary tables"""

    def saved(self, shape: ModelShape, training: TrainingShape) -> int:
        """Return the bytes alive between forward and backward pass, on whatever device."""
        return shape.layers * self.per_layer(training) + self.outside_layers

    def on_the_way(self, shape: ModelShape, training: TrainingShape) -> int:
        """Return the bytes on the GPU of what is moved to the host: TRL keeps the last five tensors."""
        last = min(shape.layers, _STASH) if training.gradient_checkpointing else 1
        return last * self.per_layer(training) + self.outside_layers

    def on_host(self, shape: ModelShape, training: TrainingShape) -> int:
        """Return the bytes in the host's pinned memory, of which torch takes powers of two."""
        per_layer = self.per_layer(training)
        if training.gradient_checkpointing:
            per_layer = 1 << (per_layer - 1).bit_length()
        return shape.layers * per_layer + self.outside_layers

    def per_layer(self, training: TrainingShape) -> int:
        """Return what one layer keeps."""
        return self.layer_input if training.gradient_checkpointing else self.layer


def activations(shape: ModelShape, training: TrainingShape) -> Activations:
    """Return the activation memory of one micro-batch."""
    attention, mlp = (_FUSED_ATTENTION, _FUSED_MLP) if shape.fused else (_ATTENTION, _MLP)
    per_token = (
        _norms(shape, training)
        + _attention(shape, training)
        + _linear_inputs(shape, training, attention)
    )
    inside_mlp = _mlp(shape, training) + _linear_inputs(shape, training, mlp)
    tile = min(training.tokens, TILE_TOKENS) if training.in_tiles else 0
    per_token += shape.hidden * training.residual_bytes if tile else inside_mlp
    trained_norm = training.residual_bytes if training.lora is None else 0
    outside_layers = (
        shape.hidden * (4 + trained_norm + training.residual_bytes)
        + 2 * shape.head_dim * training.residual_bytes
    )
    return Activations(
        layer=training.tokens * per_token + _attention_square(shape, training),
        tile=tile * inside_mlp,
        layer_input=training.tokens * shape.hidden * training.residual_bytes,
        outside_layers=training.tokens * outside_layers,
    )


def _norms(shape: ModelShape, training: TrainingShape) -> int:
    """Norms save the input in float32, 1 / rms, and the normalized input if the weight trains."""
    trains = training.lora is None
    size = shape.norms * (shape.hidden * (4 + trains * training.residual_bytes) + 4)
    if shape.qk_norm:
        size += (shape.attention_width + shape.kv_width) * (4 + trains * training.dtype_bytes)
        size += (shape.heads + shape.kv_heads) * 4
    return size


def _attention(shape: ModelShape, training: TrainingShape) -> int:
    """Queries, keys, values, output; a log-sum-exp per head, except in eager attention."""
    repeated = training.attention == "eager" or (training.attention == "sdpa" and training.masked)
    kv_width = shape.attention_width if repeated else shape.kv_width
    sums = 0 if training.attention == "eager" else shape.heads * 4
    return (2 * shape.attention_width + 2 * kv_width) * training.dtype_bytes + sums


def _attention_square(shape: ModelShape, training: TrainingShape) -> int:
    """Terms in tokens x tokens: SDPA's float mask, eager attention's probabilities."""
    square = training.micro_batch * training.max_tokens**2
    if training.attention == "eager":
        copies = 4 + (training.dtype_bytes if training.dtype_bytes < 4 else 0)
        return square * shape.heads * copies
    return square * training.dtype_bytes if training.attention == "sdpa" and training.masked else 0


def _mlp(shape: ModelShape, training: TrainingShape) -> int:
    """The gate before and after its activation, and the up projection.

    Their product is down_proj's input, counted in `_linear_inputs`.
    """
    return 3 * shape.intermediate * training.dtype_bytes


def _linear_inputs(shape: ModelShape, training: TrainingShape, modules: _Readers) -> int:
    """A linear module saves its input if its weight trains; so does an adapter."""
    linears = shape.linears()
    if training.lora:
        return _adapter_inputs(shape, training, training.lora, modules)
    # Autocast casts a norm's float32 output once for each reader; the others have the compute type.
    return sum(
        linears[readers[0]][0] * training.dtype_bytes * (len(readers) if training.autocast else 1)
        for readers in modules
        if readers != ("o_proj",)  # its input is the attention output, counted there
    )


def _adapter_inputs(
    shape: ModelShape, training: TrainingShape, lora: LoraShape, modules: _Readers
) -> int:
    """An adapter saves its input, shared or copied, and A's output; DoRA saves both outputs."""
    names = set(chain.from_iterable(modules))
    targets = {name: sizes for name, sizes in lora.targets(shape).items() if name in names}
    width = 2 if training.autocast else training.adapter_bytes
    total = sum(
        lora.r * width + lora.dora * outputs * (width + training.dtype_bytes)
        for _, outputs in targets.values()
    )
    if not (training.autocast or lora.dropout or training.adapter_bytes != training.dtype_bytes):
        shared = {
            readers
            for readers in modules
            for name in readers
            if name in targets and name != "o_proj"
        }
        return total + sum(shape.linears()[readers[0]][0] * width for readers in shared)
    mask = 1 if training.device == "cuda" else training.adapter_bytes
    return total + sum(
        inputs * (width + mask * (lora.dropout > 0)) for inputs, _ in targets.values()
    )
