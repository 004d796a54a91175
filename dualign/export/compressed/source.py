"""The model to compress: its weights, and which of them become smaller.

All linear layers but the head do. Embeddings, norms, biases and the head are written in bfloat16.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from dualign.checkpoints.checkpoint import Weights
from dualign.checkpoints.header import TensorSpec
from dualign.errors import CheckpointError
from dualign.export.compressed.types import CompressedType

_INSTALL = "pip install 'dualign[quantize]'"
_GROUPS = (128, 64, 32)  # those that vLLM's kernels have
_LAYER = re.compile(r"^(?P<layers>(?:.*\.)?layers)\.(?P<number>\d+)\.")


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressedSource:
    """An open checkpoint, and how it will be written."""

    model: str
    type: CompressedType
    weights: Weights
    modules: tuple[str, ...]
    """linear layers that become smaller, by their paths"""
    ignored: tuple[str, ...]
    """the other ones"""
    group: int | None
    """weights to a scale; None where the type says it, or has a scale to a row"""

    @property
    def weight_args(self) -> dict[str, Any]:
        """compressed-tensors' QuantizationArgs of the weights."""
        args = dict(self.type.weights)
        return args | ({"group_size": self.group} if self.group else {})

    def names(self) -> list[str]:
        """Return the checkpoint's tensors in the order in which they are written: layer by layer, last."""
        return sorted(self.weights.entries, key=lambda name: (layer_number(name), name))

    def specs(self) -> list[TensorSpec]:
        """Return what will be written, in order."""
        return [spec for name in self.names() for spec in self._specs(name)]

    def _specs(self, name: str) -> list[TensorSpec]:
        shape, module = self.weights.entries[name].shape, name.removesuffix(".weight")
        if name == module or module not in self.modules:
            return [TensorSpec(name, shape, "BF16")]
        return [
            TensorSpec(f"{module}.{key}", size, dtype) for key, size, dtype in self._packed(*shape)
        ]

    def _packed(self, rows: int, columns: int) -> list[tuple[str, tuple[int, ...], str]]:
        """Return name, shape and type of the tensors of one matrix."""
        args = self.weight_args
        if self.type.format == "float-quantized":
            return [("weight", (rows, columns), "F8_E4M3"), ("weight_scale", (rows, 1), "BF16")]
        groups = columns // args["group_size"] if args.get("group_size") else 1
        if self.type.format == "nvfp4-pack-quantized":
            return [
                ("weight_global_scale", (1,), "F32"),
                ("weight_packed", (rows, columns // 2), "U8"),
                ("weight_scale", (rows, groups), "F8_E4M3"),
            ]
        words = partial(_words, bits=args["num_bits"])
        tensors: list[tuple[str, tuple[int, ...], str]] = [
            ("weight_packed", (rows, words(columns)), "I32"),
            ("weight_scale", (rows, groups), "BF16"),
            ("weight_shape", (2,), "I64"),
        ]
        if not args["symmetric"]:
            tensors.append(("weight_zero_point", (words(rows), groups), "I32"))
        return tensors


def _words(count: int, *, bits: int) -> int:
    """Return the 32-bit words that hold so many numbers."""
    return -(-count * bits // 32)


def open_compressed(model: str, type: CompressedType) -> CompressedSource:
    """Open a run directory, model folder, adapter, hub id or embedded model.

    Raises:
        DualignError: compressed-tensors isn't installed, or the type doesn't suit the model.
    """
    from dualign.checkpoints.weights import open_weights

    if type.method != "cast" and find_spec("compressed_tensors") is None:
        raise CheckpointError(
            f"--type {type.name} needs the package compressed-tensors: {_INSTALL}"
        )
    weights = open_weights(model)
    modules, ignored = _modules(weights) if type.method != "cast" else ((), ())
    if type.method != "cast":
        _require_matrices(weights, modules, model, type)
    return CompressedSource(
        model=model,
        type=type,
        weights=weights,
        modules=modules,
        ignored=ignored,
        group=_group(weights, modules, model, type),
    )


def layer_number(name: str) -> int:
    """Return the number of the layer that a tensor belongs to; -1 outside of the layers."""
    match = _LAYER.match(name)
    return int(match["number"]) if match else -1


def layers_path(modules: tuple[str, ...]) -> str:
    """Return the path of the list of layers."""
    match = _LAYER.match(modules[0])
    assert match is not None, "open_compressed refuses modules outside of layers"
    return match["layers"]


def _modules(weights: Weights) -> tuple[tuple[str, ...], tuple[str, ...]]:
    from dualign.checkpoints.meta_model import (
        build_meta_model,
        linear_modules,
        quantized_modules,
    )

    model = build_meta_model(weights.config)
    modules = [path for path in quantized_modules(model) if layer_number(path) >= 0]
    return tuple(modules), tuple(path for path in linear_modules(model) if path not in modules)


def _require_matrices(
    weights: Weights, modules: tuple[str, ...], model: str, type: CompressedType
) -> None:
    """Refuse a model most of whose weights aren't in linear layers: experts in one tensor."""
    experts = [name for name, entry in weights.entries.items() if ".experts" in name]
    missing = [path for path in modules if f"{path}.weight" not in weights.entries]
    if not modules or missing or experts:
        what = (experts or missing or ["no linear layers"])[0]
        raise CheckpointError(
            f"{model}: {what}: --type {type.name} is for models whose layers are linear modules of "
            "one matrix each; experts and other forms need llm-compressor itself, or --type bf16"
        )


def _group(
    weights: Weights, modules: tuple[str, ...], model: str, type: CompressedType
) -> int | None:
    """Return the largest group that divides the rows of all matrices."""
    if "group_size" not in type.weights:
        return None
    widths: Mapping[int, str] = {weights.entries[f"{m}.weight"].shape[1]: m for m in modules}
    own = type.weights["group_size"]
    choices = (own,) if own else _GROUPS
    for group in choices:
        if all(width % group == 0 for width in widths):
            return None if own else group
    width, module = next((w, m) for w, m in widths.items() if w % choices[-1])
    raise CheckpointError(
        f"{model}: {module} has rows of {width} weights, which groups of {choices[-1]} don't divide; "
        "choose --type fp8 or int8"
    )
