"""AWQ: scale the columns that large inputs meet up before rounding, and the module before them down.

Lin et al. 2023, arXiv 2306.00978, section 3.2: of s = (mean |x|)^a, a from 0 to 1, the one is taken
whose rounded matrices change the outputs least: the sum of (dW H) * dW, with H the inputs' second
moments, is the squared change over all tokens that were read.
Shapes: R rows (outputs), C columns (inputs).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dualign.export.compressed.packing import scales_of

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs

_STEPS = 20
_PAIRS = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("self_attn.v_proj", ("self_attn.o_proj",)),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.up_proj", ("mlp.down_proj",)),
)
"""(module whose outputs are scaled down, modules that read them) in layers of Llama's kind"""


@dataclass(slots=True)
class Inputs:
    """What a linear layer read."""

    moments_CC: Tensor
    """X^T X, summed over tokens"""
    sizes_C: Tensor
    """sum of |x|"""
    tokens: int


def has_pairs(layer: nn.Module) -> bool:
    """Return whether a layer has the modules that AWQ scales."""
    names = {name for name, _ in layer.named_modules()}
    return all({before, *after} <= names for before, after in _PAIRS)


def smooth(layer: nn.Module, inputs: Mapping[str, Inputs], args: "QuantizationArgs") -> None:
    """Scale the modules of a layer in place; what it computes stays the same."""
    for before, after in _PAIRS:
        earlier = _parameters(layer, before)
        readers = [_parameters(layer, name)["weight"] for name in after]
        if len(earlier["weight"]) != readers[0].shape[1]:
            continue  # several heads read one value: its columns can't be scaled apart
        best_C = _best(readers, inputs[after[0]], args)
        with torch.no_grad():
            for weight_RC in readers:
                weight_RC *= best_C
            for parameter in earlier.values():
                parameter /= best_C.reshape(-1, *(1,) * (parameter.dim() - 1))
        for name in after:
            inputs[name].moments_CC /= best_C[:, None] * best_C


def _parameters(layer: nn.Module, name: str) -> dict[str, Tensor]:
    """Return weight and, where there is one, bias of a module."""
    return dict(layer.get_submodule(name).named_parameters(recurse=False))


def _best(weights: Sequence[Tensor], read: Inputs, args: "QuantizationArgs") -> Tensor:
    """Return the scales of the columns that change the outputs least."""
    mean_C = (read.sizes_C / read.tokens).clamp(min=1e-4)
    losses = []
    for step in range(_STEPS):
        scales_C = _scales(mean_C, step)
        losses.append(sum(_loss(weight, scales_C, read.moments_CC, args) for weight in weights))
    return _scales(mean_C, losses.index(min(losses)))


def _scales(mean_C: Tensor, step: int) -> Tensor:
    scales_C = mean_C ** (step / _STEPS)
    return scales_C / (scales_C.max() * scales_C.min()).sqrt()


def _loss(
    weight_RC: Tensor, scales_C: Tensor, moments_CC: Tensor, args: "QuantizationArgs"
) -> float:
    change_RC = nearest_values(weight_RC * scales_C, args)[0] / scales_C - weight_RC
    return float(((change_RC @ moments_CC) * change_RC).sum())


def nearest_values(weight_RC: Tensor, args: "QuantizationArgs") -> tuple[Tensor, dict[str, Tensor]]:
    """Return a matrix rounded by itself, and its scales."""
    params = scales_of(weight_RC, args)
    scale_RG1, zero_RG1 = (
        params[name].float()[..., None] for name in ("weight_scale", "weight_zero_point")
    )
    groups = weight_RC.reshape(*scale_RG1.shape[:2], -1)
    low, high = -(2 ** (args.num_bits - 1)), 2 ** (args.num_bits - 1) - 1
    steps = (groups / scale_RG1 + zero_RG1).round().clamp(low, high)
    return ((steps - zero_RG1) * scale_RG1).flatten(1), params
