"""Write a GGUF file: settings, vocabulary, then the tensors one by one."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dualign.checkpoints.dtypes import Array, NotFiniteError, from_float
from dualign.errors import CheckpointError
from dualign.export.architecture import Architecture
from dualign.export.tensors import GGUFTensor
from dualign.export.vocabulary import GGUFVocabulary
from dualign.terminal import progress

if TYPE_CHECKING:
    from gguf import GGUFWriter

EXACT = ("f32", "f16", "bf16")
"""Types that are written from the checkpoint itself: the numbers, rounded once at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GGUFLayout:
    """A model as GGUF holds it."""

    name: str
    architecture: Architecture
    vocabulary: GGUFVocabulary
    tensors: list[GGUFTensor]
    generation: Mapping[str, Any]
    """generation_config.json: the default sampling of inference apps"""


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A tensor in the form that is written."""

    name: str
    shape: tuple[int, ...]
    type: str
    """a name of GGMLQuantizationType"""
    nbytes: int
    make: Callable[[], Array]


def write_model(out: Path, layout: GGUFLayout, type: str) -> None:
    """Write a model as a type of `EXACT`; vectors (norms, biases) are float32 in all.

    Raises:
        CheckpointError: a weight exceeds float16's maximum (65504).
    """
    tensors = [_file_tensor(tensor, type) for tensor in layout.tensors]
    write_tensors(_writer(out, layout, type), tensors, label=f"writing {layout.name} {type}")


def file_type(type: str) -> int:
    """Return the value of general.file_type, which is llama.cpp's llama_ftype."""
    from gguf import LlamaFileType

    return int(LlamaFileType["ALL_F32" if type == "f32" else f"MOSTLY_{type.upper()}"])


def settings(layout: GGUFLayout, type: str) -> dict[str, Any]:
    """Return the key-value settings that `write_model` writes."""
    writer = _writer(Path("unwritten"), layout, type)
    return {key: field.value for key, field in writer.kv_data[0].items()}


def _writer(out: Path, layout: GGUFLayout, type: str) -> "GGUFWriter":
    from gguf import GGUFWriter

    writer = GGUFWriter(str(out), layout.architecture.name)
    writer.add_type("model")
    writer.add_name(layout.name)
    writer.add_size_label(_size_label(sum(math.prod(tensor.shape) for tensor in layout.tensors)))
    writer.add_file_type(file_type(type))
    writer.add_quantization_version(2)
    _add_sampling(writer, layout.generation)
    _add_architecture(writer, layout.architecture)
    _add_vocabulary(writer, layout.vocabulary)
    return writer


def write_tensors(writer: "GGUFWriter", tensors: Sequence[FileTensor], *, label: str) -> None:
    """Write settings and tensors to the file; one tensor is in memory at a time."""
    from gguf import GGMLQuantizationType

    for tensor in tensors:
        kind = GGMLQuantizationType[tensor.type]
        # The writer takes shapes in numpy's order, and reads float32 as "not packed".
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total = sum(tensor.nbytes for tensor in tensors)
    with progress(total, label) as bar:
        for tensor in tensors:
            writer.write_tensor_data(tensor.make())
            bar.update(tensor.nbytes)
    writer.close()


def _file_tensor(tensor: GGUFTensor, type: str) -> FileTensor:
    kind = type.upper() if len(tensor.shape) > 1 else "F32"
    width = {"F16": 2, "BF16": 2, "F32": 4}[kind]

    def make() -> Array:
        try:
            return from_float(tensor.read(), kind)
        except NotFiniteError as error:
            raise CheckpointError(
                f"{tensor.name}: element {error.place} exceeds what {kind} holds; "
                "export as bf16 or f32, or scale the weights"
            ) from None

    return FileTensor(tensor.name, tensor.shape, kind, math.prod(tensor.shape) * width, make)


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


def _add_vocabulary(writer: "GGUFWriter", vocabulary: GGUFVocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    for name, number in vocabulary.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    writer.add_add_bos_token(vocabulary.add_bos)
    named = {"default": vocabulary.chat_template, **vocabulary.more_templates}
    entries = [{"name": name, "template": text} for name, text in named.items()]
    writer.add_chat_template(entries if vocabulary.more_templates else vocabulary.chat_template)


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
