"""Dimensions of a training step: the input of the memory and time estimates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dualign.cost.lora_shape import LoraShape
from dualign.cost.model_shape import ModelShape
from dualign.errors import ConfigError
from dualign.training.config import TILE_TOKENS

_DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingShape:
    """One process's part of a step. Defaults are those of TRL's SFTConfig and DPOConfig."""

    pairs: bool = False
    """rows are preference pairs, or rated answers"""
    micro_batch: int
    """rows in one forward pass: per_device_train_batch_size, times two for pairs and for kto"""
    max_tokens: int
    """length of the longest row"""
    tokens_per_micro_batch: int | None = None
    """padding included, and a prompt that a pair's answers share once; None: micro_batch x max_tokens"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """compute type of the layers"""
    master_weights: bool = False
    """float32 weights besides a 2-byte dtype: train.bf16 on float32, DeepSpeed or FSDP2 in bf16"""
    quantization: Literal["nf4"] | None = None
    lora: LoraShape | None = None
    optimizer: str = "adamw_torch_fused"
    gradient_checkpointing: bool = True
    tiled_mlp: bool = False
    offloaded: bool = False
    """activations wait in the host's memory: activation_offloading"""
    gradient_accumulation: int = 1
    reference: Literal["adapter", "cached", "copy"] | None = None
    """source of a preference stage's reference log-probabilities; None: its loss needs none"""
    sharding: Literal["zero2", "zero3", "fsdp2"] | None = None
    world_size: int = 1
    attention: Literal["dualign", "sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa"
    masked: bool = True
    """rows are packed or padded, so SDPA needs a mask"""
    save_copies: int = 0
    """copies of all weights while saving (gathering, merging, reloading to compare)"""
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        problems = [text for wrong, text in self._problems() if wrong]
        if problems:
            raise ConfigError("memory can't be estimated: " + "; ".join(problems))

    def _problems(self) -> list[tuple[bool, str]]:
        smallest = min(
            self.micro_batch, self.max_tokens, self.world_size, self.gradient_accumulation
        )
        return [
            (smallest < 1, f"expected sizes of 1 or more, found {smallest}"),
            (
                self.quantization is not None and self.lora is None,
                "nf4 weights can't be trained: add lora",
            ),
            (
                self.reference is not None and not self.pairs,
                f"reference is for preference pairs, found {self.reference} with pairs={self.pairs}",
            ),
            (self.reference == "adapter" and self.lora is None, "reference: adapter needs lora"),
            (
                self.master_weights and self.dtype == "float32",
                "master_weights needs a 2-byte dtype, found float32",
            ),
        ]

    @property
    def tokens(self) -> int:
        """Tokens in one forward pass, padding included."""
        return self.tokens_per_micro_batch or self.micro_batch * self.max_tokens

    @property
    def in_tiles(self) -> bool:
        """Whether a batch's tokens are more than one tile of an MLP."""
        return self.tiled_mlp and self.tokens > TILE_TOKENS

    @property
    def dtype_bytes(self) -> int:
        return _DTYPE_BYTES[self.dtype]

    @property
    def autocast(self) -> bool:
        """True for float32 weights, cast at each use; sharded training has 2-byte weights."""
        return self.master_weights and self.sharding is None

    @property
    def residual_bytes(self) -> int:
        """Bytes of an element of the residual stream, which autocast leaves in float32."""
        return 4 if self.autocast else self.dtype_bytes

    @property
    def adapter_bytes(self) -> int:
        """Bytes of an adapter's parameter.

        float32, but the base's type in ZeRO-3 (TRL).
        """
        return self.dtype_bytes if self.sharding == "zero3" else 4

    @property
    def trained_bytes(self) -> int:
        """Bytes of a trained parameter and of its gradient."""
        if self.lora:
            return self.adapter_bytes
        # FSDP2 keeps float32 shards; DeepSpeed's gradients have the 2-byte type of its weights.
        return 4 if self.master_weights and self.sharding in (None, "fsdp2") else self.dtype_bytes

    def trained_parameters(self, shape: ModelShape) -> int:
        return self.lora.parameters(shape) if self.lora else shape.parameters
