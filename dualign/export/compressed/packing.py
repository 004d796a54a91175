"""One matrix -> the tensors that compressed-tensors stores, and their scales.

Scales are rounded to the type in which they are stored before weights are rounded to them.
Shapes: R rows (outputs), C columns (inputs), G groups of columns.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dualign.export.compressed.types import CompressedType

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs

_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""matrices that vLLM runs as one, so that they share NVFP4's scale of the whole tensor"""


def quantization_args(settings: Mapping[str, Any]) -> "QuantizationArgs":
    """Return compressed-tensors' arguments."""
    from compressed_tensors.quantization import QuantizationArgs

    return QuantizationArgs(**settings)


def scales_of(
    weight_RC: Tensor, args: "QuantizationArgs", largest: float | None = None
) -> dict[str, Tensor]:
    """Return scale, zero point and, of NVFP4, the scale of the whole tensor, by minima and maxima.

    Args:
        largest: of the absolute values of all matrices that share the scale of the whole tensor.
    """
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    groups = weight_RC.shape[1] // args.group_size if args.group_size else 1
    values_RGC = weight_RC.reshape(len(weight_RC), groups, -1)
    low_RG, high_RG = values_RGC.amin(-1), values_RGC.amax(-1)
    params: dict[str, Tensor] = {}
    if largest is not None:
        bound = torch.tensor([largest])
        params["weight_global_scale"] = generate_gparam(-bound, bound)
    scale_RG, zero_RG = calculate_qparams(
        low_RG, high_RG, args, global_scale=params.get("weight_global_scale")
    )
    if args.scale_dtype is None:
        scale_RG = scale_RG.to(torch.bfloat16).float()
    return {**params, "weight_scale": scale_RG, "weight_zero_point": zero_RG}


def packed(
    weight_RC: Tensor,
    params: Mapping[str, Tensor],
    type: CompressedType,
    args: "QuantizationArgs",
) -> dict[str, Tensor]:
    """Return the stored tensors of a matrix by their names in its module."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=args, **_activations(type))
    compressor = BaseCompressor.get_value_from_registry(type.format)
    tensors: dict[str, Tensor] = compressor.compress({"weight": weight_RC, **params}, scheme)
    if tensors["weight_scale"].dtype == torch.float32:
        tensors["weight_scale"] = tensors["weight_scale"].to(torch.bfloat16)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def quantization_config(
    type: CompressedType, settings: Mapping[str, Any], ignored: tuple[str, ...]
) -> dict[str, Any]:
    """Return the `quantization_config` of config.json, as llm-compressor publishes it."""
    import compressed_tensors
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
    )

    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=quantization_args(settings),
        format=type.format,
        **_activations(type),
    )
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=type.format,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=list(ignored),
    )
    dumped: dict[str, Any] = config.model_dump(mode="json")
    return {
        **dumped,
        "quant_method": "compressed-tensors",
        "version": compressed_tensors.__version__,
        "sparsity_config": {},
        "transform_config": {},
    }


def _activations(type: CompressedType) -> dict[str, Any]:
    if type.activations is None:
        return {}
    return {"input_activations": quantization_args(type.activations)}


def sharing(module: str) -> list[str]:
    """Return the matrices that share one scale of the whole tensor with a matrix, itself among them."""
    parent, _, name = module.rpartition(".")
    group = next((names for names in _FUSED if name in names), (name,))
    return [f"{parent}.{other}" for other in group]
