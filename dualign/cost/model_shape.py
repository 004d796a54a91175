"""Dimensions of a decoder, read from its config.json: enough to count parameters.

`dualign plan` needs them before torch is imported and before the weights are downloaded.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.embedded import embedded_model
from dualign.errors import CheckpointError
from dualign.model_ref import ModelRef, adapter_base

# Families whose layers were compared with the counts below: norm, attention, norm, gated MLP.
_SUPPORTED_TYPES = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma3_text", "phi3")
# Keys that a config.json may leave out, with transformers' defaults for the family.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "mistral": {"num_key_value_heads": 8},
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
    "gemma3_text": {"num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True},
    "smollm3": {"num_key_value_heads": 4, "tie_word_embeddings": True},
}
_MLP = ("gate_proj", "up_proj", "gate_up_proj", "down_proj")
_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_REQUIRED = (
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """A dense decoder: an embedding, `layers` times (attention, gated MLP), an output head."""

    model_type: str
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    """the output head is the transposed embedding"""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norms: int = 2
    """of one layer, each as wide as the hidden state"""
    fused: bool = False
    """queries, keys and values are one module, and so are gate and up"""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, where: str = "config.json") -> "ModelShape":
        """Return the shape in a config.json.

        Raises:
            CheckpointError: not a supported dense decoder, or dimensions are missing.
        """
        kind = config.get("model_type")
        if kind not in _SUPPORTED_TYPES:
            raise CheckpointError(
                f"{where}: model_type {kind!r} can't be estimated; expected one of {', '.join(_SUPPORTED_TYPES)}"
            )
        config = {**_DEFAULTS.get(kind, {}), **config}
        missing = [key for key in _REQUIRED if not isinstance(config.get(key), int)]
        if missing:
            raise CheckpointError(f"{where}: expected whole numbers for {', '.join(missing)}")
        heads = config["num_attention_heads"]
        bias = kind in ("llama", "qwen3", "smollm3", "gemma3_text") and bool(
            config.get("attention_bias")
        )
        return cls(
            model_type=kind,
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            intermediate=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocab=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings")),
            qkv_bias=kind == "qwen2" or bias,
            o_bias=bias,
            mlp_bias=kind in ("llama", "smollm3") and bool(config.get("mlp_bias")),
            qk_norm=kind in ("qwen3", "gemma3_text"),
            norms=4 if kind == "gemma3_text" else 2,
            fused=kind == "phi3",
        )

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelShape":
        """Return the shape of a local checkpoint folder."""
        path = folder / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"{path} is missing: expected a model folder with a config.json"
            ) from None
        except json.JSONDecodeError as error:
            raise CheckpointError(
                f"{path} isn't JSON ({error}): fetch or save the model again"
            ) from None
        return cls.from_config(config, where=str(path))

    @property
    def attention_width(self) -> int:
        """Width of the queries and of the attention output."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    def linears(self) -> Mapping[str, tuple[int, int]]:
        """Return name -> (inputs, outputs) of the linear modules of one layer."""
        hidden, wide = self.hidden, self.intermediate
        if self.fused:
            return {
                "qkv_proj": (hidden, self.attention_width + 2 * self.kv_width),
                "o_proj": (self.attention_width, hidden),
                "gate_up_proj": (hidden, 2 * wide),
                "down_proj": (wide, hidden),
            }
        return {
            "q_proj": (hidden, self.attention_width),
            "k_proj": (hidden, self.kv_width),
            "v_proj": (hidden, self.kv_width),
            "o_proj": (self.attention_width, hidden),
            "gate_proj": (hidden, wide),
            "up_proj": (hidden, wide),
            "down_proj": (wide, hidden),
        }

    @property
    def layer_linear_parameters(self) -> int:
        """Parameters in the matrices of one layer, which NF4 quantizes and autocast copies."""
        return sum(inputs * outputs for inputs, outputs in self.linears().values())

    @property
    def mlp_parameters(self) -> int:
        """Parameters in the matrices of one layer's MLP."""
        return sum(size[0] * size[1] for name, size in self.linears().items() if name in _MLP)

    def layer_modules(self) -> Mapping[str, int]:
        """Return path -> parameters without biases, of the modules in all layers."""
        sizes = {
            f"{'mlp' if name in _MLP else 'self_attn'}.{name}": inputs * outputs
            for name, (inputs, outputs) in self.linears().items()
        }
        sizes |= dict.fromkeys(_NORMS[: self.norms], self.hidden)
        if self.qk_norm:
            sizes |= dict.fromkeys(("self_attn.q_norm", "self_attn.k_norm"), self.head_dim)
        return {
            f"model.layers.{layer}.{name}": size
            for layer in range(self.layers)
            for name, size in sizes.items()
        }

    @property
    def layer_biases(self) -> int:
        """Parameters of the biases of one layer."""
        return (
            self.qkv_bias * (self.attention_width + 2 * self.kv_width)
            + self.o_bias * self.hidden
            + self.mlp_bias * (2 * self.intermediate + self.hidden)
        )

    @property
    def layer_parameters(self) -> int:
        norms = self.norms * self.hidden + self.qk_norm * 2 * self.head_dim
        return self.layer_linear_parameters + self.layer_biases + norms

    @property
    def embedding_parameters(self) -> int:
        """Parameters of one vocabulary x hidden matrix."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        matrices = 1 if self.tied else 2
        return (
            self.layers * self.layer_parameters + matrices * self.embedding_parameters + self.hidden
        )


def config_file(base: str, folder: Path, notes: list[str]) -> Path | None:
    """Return the model's config.json; for a hub id, model_config.json in the recipe's folder."""
    for path in _config_candidates(base, folder):
        if path.is_file():
            return path
    notes.append(
        f"memory and time: {base} isn't here; copy its config.json to {folder / 'model_config.json'}"
    )
    return None


def shape_of(base: str, folder: Path, notes: list[str]) -> ModelShape | None:
    """Return the shape of a model by its config.json; None, with a note, where it isn't known."""
    file = config_file(base, folder, notes)
    return _model_shape(file, notes) if file else None


def _model_shape(file: Path, notes: list[str]) -> ModelShape | None:
    try:
        return ModelShape.from_config(json.loads(file.read_text(encoding="utf-8")), where=str(file))
    except CheckpointError as error:
        notes.append(str(error))
        return None


def _config_candidates(model: str, folder: Path) -> list[Path]:
    ref = ModelRef.parse(model)
    if ref.path and (ref.path / "adapter_config.json").is_file():
        ref = adapter_base(ref.path, read_json(ref.path / "adapter_config.json"))
    if ref.kind == "embedded":
        return [embedded_model(ref.name) / "config.json"]
    return [Path(ref.name) / "config.json", folder / "model_config.json"]
