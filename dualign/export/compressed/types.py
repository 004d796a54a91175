"""The types of checkpoint that `dualign export` writes for vLLM, in one table.

A new type is a row. `weights` and `activations` are compressed-tensors' QuantizationArgs; a group of
None is chosen for each model. Nothing heavy is imported: the command's help reads this.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ROWS = 20
"""problems of each task, or held-out rows of each mode, that both models are asked, unless told"""
CALIBRATION_ROWS = 128
"""rows that gptq and awq read, unless told"""
Method = Literal["cast", "nearest", "gptq", "awq"]
_INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": None, "dynamic": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressedType:
    """One type: how numbers are chosen, and how they are stored."""

    name: str
    method: Method
    """cast: to bfloat16; nearest: each weight by itself; gptq, awq: by what rows of both modes need"""
    about: str
    format: str = ""
    """compressed-tensors' name of the file format"""
    weights: Mapping[str, Any] = field(default_factory=dict)
    activations: Mapping[str, Any] | None = None
    """numbers that are rounded while the model runs; None: they stay as they are"""
    dtype: str = "auto"
    """that transformers can load it in; compressed-tensors 0.20 unpacks NVFP4 to bfloat16 alone"""

    @property
    def calibrated(self) -> bool:
        """Whether it reads rows."""
        return self.method in ("gptq", "awq")


TYPES: dict[str, CompressedType] = {
    each.name: each
    for each in (
        CompressedType(name="bf16", method="cast", about="all weights in bfloat16"),
        CompressedType(
            name="fp8",
            method="nearest",
            about="8-bit floats, a scale to a row; activations too, a scale to a token",
            format="float-quantized",
            weights={
                "num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True,
                "dynamic": False,
            },
            activations={
                "num_bits": 8, "type": "float", "strategy": "token", "symmetric": True,
                "dynamic": True,
            },
        ),
        CompressedType(
            name="int8",
            method="nearest",
            about="8-bit whole numbers, a scale to a row; activations stay",
            format="pack-quantized",
            weights={
                "num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True,
                "dynamic": False,
            },
        ),
        CompressedType(
            name="gptq",
            method="gptq",
            about="4-bit whole numbers by GPTQ, a scale to a group",
            format="pack-quantized",
            weights={**_INT4, "symmetric": True, "actorder": "weight"},
        ),
        CompressedType(
            name="awq",
            method="awq",
            about="4-bit whole numbers after AWQ's scaling, a scale to a group",
            format="pack-quantized",
            weights={**_INT4, "symmetric": True},
        ),
        CompressedType(
            name="nvfp4",
            method="nearest",
            about="4-bit floats in groups of 16 (NVFP4), activations stay",
            dtype="bfloat16",
            format="nvfp4-pack-quantized",
            weights={
                "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
                "symmetric": True, "dynamic": False, "scale_dtype": "torch.float8_e4m3fn",
            },
        ),
    )
}  # fmt: skip
