"""Writes a GGUF file: settings, vocabulary, then one tensor after the other."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from dualign.checkpoints.dtypes import Array, NotFinite, narrow
from dualign.errors import CheckpointError
from dualign.export.architecture import Architecture
from dualign.export.tensors import Tensor
from dualign.export.vocabulary import Vocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter

FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "q4_k_m": 15}
"""general.file_type, llama.cpp's llama_ftype"""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it will lie in the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    """a name of GGMLQuantizationType"""
    nbytes: int
    make: Callable[[], Array]


def write_model(
    out: Path,
    architecture: Architecture,
    vocabulary: Vocabulary,
    tensors: Sequence[Tensor],
    *,
    type: str,
    name: str,
    generation: Mapping[str, Any],
) -> None:
    """Write a model as `f32` or `f16`; vectors (norms, biases) are float32 in both, as llama.cpp
    wants them. `generation` is generation_config.json, for the sampling that players default to.

    Raises:
        CheckpointError: a weight is beyond what float16 holds (65504).
    """
    writer = _writer(out, architecture, vocabulary, tensors, type, name, generation)
    write_tensors(writer, [_stored(one, type) for one in tensors], label=f"writing {name} {type}")


def settings(
    architecture: Architecture,
    vocabulary: Vocabulary,
    tensors: Sequence[Tensor],
    *,
    type: str,
    name: str,
    generation: Mapping[str, Any],
) -> dict[str, Any]:
    """The settings that `write_model` writes, by key."""
    writer = _writer(Path("unwritten"), architecture, vocabulary, tensors, type, name, generation)
    return {key: one.value for key, one in writer.kv_data[0].items()}


def _writer(
    out: Path,
    architecture: Architecture,
    vocabulary: Vocabulary,
    tensors: Sequence[Tensor],
    type: str,
    name: str,
    generation: Mapping[str, Any],
) -> "GGUFWriter":
    from gguf import GGUFWriter

    writer = GGUFWriter(str(out), architecture.name)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label(_size_label(sum(math.prod(one.shape) for one in tensors)))
    writer.add_file_type(FILE_TYPES[type])
    writer.add_quantization_version(2)
    _add_sampling(writer, generation)
    _add_architecture(writer, architecture)
    _add_vocabulary(writer, vocabulary)
    return writer


def write_tensors(writer: "GGUFWriter", tensors: Sequence[Stored], *, label: str) -> None:
    """Write the file of a writer that has its settings; one tensor is in memory at a time."""
    from gguf import GGMLQuantizationType

    for one in tensors:
        kind = GGMLQuantizationType[one.type]
        # The writer takes its shapes in numpy's order, and float32 to mean "not packed".
        writer.add_tensor_info(one.name, one.shape, np.dtype(np.float32), one.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total = sum(one.nbytes for one in tensors)
    with tqdm(total=total, unit="B", unit_scale=True, desc=label, disable=None) as progress:
        for one in tensors:
            writer.write_tensor_data(one.make())
            progress.update(one.nbytes)
    writer.close()


def _stored(tensor: Tensor, type: str) -> Stored:
    kind = "F16" if type == "f16" and len(tensor.shape) > 1 else "F32"
    width = {"F16": 2, "F32": 4}[kind]

    def make() -> Array:
        try:
            return narrow(tensor.read(), kind)
        except NotFinite as error:
            raise CheckpointError(
                f"{tensor.name}: element {error.place} is beyond what {kind} holds; "
                "export as f32, or scale the weights"
            ) from None

    return Stored(tensor.name, tensor.shape, kind, math.prod(tensor.shape) * width, make)


def _add_architecture(writer: "GGUFWriter", architecture: Architecture) -> None:
    writer.add_block_count(architecture.blocks)
    writer.add_context_length(architecture.context)
    writer.add_embedding_length(architecture.hidden)
    writer.add_feed_forward_length(architecture.intermediate)
    writer.add_head_count(architecture.heads)
    writer.add_head_count_kv(architecture.kv_heads)
    writer.add_key_length(architecture.head_dim)
    writer.add_value_length(architecture.head_dim)
    writer.add_layer_norm_rms_eps(architecture.epsilon)
    writer.add_vocab_size(architecture.vocab_size)
    writer.add_rope_dimension_count(architecture.head_dim)
    writer.add_rope_freq_base(architecture.rope["rope_theta"])
    _add_rope_scaling(writer, architecture.rope)


def _add_rope_scaling(writer: "GGUFWriter", rope: Mapping[str, Any]) -> None:
    from gguf import RopeScalingType

    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _add_vocabulary(writer: "GGUFWriter", vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    for name, number in vocabulary.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_chat_template(vocabulary.chat_template)


def _add_sampling(writer: "GGUFWriter", generation: Mapping[str, Any]) -> None:
    if not generation.get("do_sample"):
        return
    if (temperature := generation.get("temperature")) is not None:
        writer.add_sampling_temp(float(temperature))
    if (top_p := generation.get("top_p")) is not None:
        writer.add_sampling_top_p(float(top_p))
    if (top_k := generation.get("top_k")) is not None:
        writer.add_sampling_top_k(int(top_k))


def _size_label(parameters: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.1f}".rstrip("0").rstrip(".") + unit
    return str(parameters)
