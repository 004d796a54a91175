"""AWQ: scale the columns that large inputs meet up before rounding, and the module before them down.

Lin et al. 2023, arXiv 2306.00978, section 3.2: of s = (mean |x|)^a, a from 0 to 1, the one is taken
whose rounded matrices change the outputs least: the sum of (dW H) * dW, with H the inputs' second
moments, is the squared change over all tokens that were read. Then the largest weights of each group
are clipped, where a finer scale for the others is worth more (as the authors' code does, not named
in the paper), by the same measure inside of the group.
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
_CLIPS = tuple(1 - step / 20 for step in range(11))
"""shares of a group's largest absolute value that weights are clipped at"""
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


def clipped(weight_RC: Tensor, moments_CC: Tensor, args: "QuantizationArgs") -> Tensor:
    """Return a matrix whose groups are clipped where rounding then changes the outputs least.

    B is a group's columns: rows of a group are compared by (dW H) * dW with the group's part of H.
    """
    size = args.group_size or weight_RC.shape[1]
    groups_RGB = weight_RC.reshape(len(weight_RC), -1, size)
    count = groups_RGB.shape[1]
    parts_GBB = moments_CC.reshape(count, size, count, size)[range(count), :, range(count)]
    bound_RG1 = groups_RGB.abs().amax(-1, keepdim=True)
    best_RGB, least_RG = groups_RGB, torch.full(groups_RGB.shape[:2], torch.inf)
    for share in _CLIPS:
        tried_RGB = groups_RGB.clamp(-share * bound_RG1, share * bound_RG1)
        rounded_RC, _ = nearest_values(tried_RGB.flatten(1), args)
        change_RGB = rounded_RC.reshape_as(groups_RGB) - groups_RGB
        loss_RG = (torch.einsum("rgb,gbc->rgc", change_RGB, parts_GBB) * change_RGB).sum(-1)
        better_RG = loss_RG < least_RG
        best_RGB = torch.where(better_RG[..., None], tried_RGB, best_RGB)
        least_RG = torch.where(better_RG, loss_RG, least_RG)
    return best_RGB.flatten(1)


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
