"""GPTQ: round a matrix column by column; what is left to round makes up for the error so far.

Frantar et al. 2022, arXiv 2210.17323, section 3: of the inputs' second moments H = X^T X, column i of
the Cholesky factor of H^-1 says how the later columns move when column i is rounded. Columns with
large inputs go first; groups and their scales stay those of the stored order.
Shapes: R rows (outputs), C columns (inputs), G groups of columns.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dualign.export.compressed.packing import scales_of

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs

_DAMPING = 0.01  # of the mean of the diagonal, which is added to it
_BLOCK = 128  # columns whose errors are spread at once


def gptq(
    weight_RC: Tensor, moments_CC: Tensor, args: "QuantizationArgs"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the rounded matrix, and its scales.

    Args:
        moments_CC: X^T X of the inputs, summed over tokens.
    """
    params = scales_of(weight_RC, args)
    group = weight_RC.shape[1] // params["weight_scale"].shape[1]
    scales_RC, zeros_RC = (
        params[name].float().repeat_interleave(group, dim=1)
        for name in ("weight_scale", "weight_zero_point")
    )
    order = moments_CC.diagonal().argsort(descending=True, stable=True)
    factor_CC = _factor(moments_CC[order][:, order])
    rounded_RC = _rounded(
        weight_RC[:, order], scales_RC[:, order], zeros_RC[:, order], factor_CC, args.num_bits
    )
    return rounded_RC[:, order.argsort()], params


def _factor(moments_CC: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse of the damped moments."""
    damped = moments_CC.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1.0  # an input that is always zero
    diagonal += _DAMPING * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor_CC: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor_CC


def _rounded(
    weight_RC: Tensor, scales_RC: Tensor, zeros_RC: Tensor, factor_CC: Tensor, bits: int
) -> Tensor:
    rest_RC, rounded_RC = weight_RC.clone(), torch.empty_like(weight_RC)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for start in range(0, rest_RC.shape[1], _BLOCK):
        stop = min(start + _BLOCK, rest_RC.shape[1])
        errors = torch.empty_like(rest_RC[:, start:stop])
        for i in range(start, stop):
            scale_R, zero_R = scales_RC[:, i], zeros_RC[:, i]
            steps_R = (rest_RC[:, i] / scale_R + zero_R).round().clamp(low, high)
            rounded_RC[:, i] = (steps_R - zero_R) * scale_R
            error_R = (rest_RC[:, i] - rounded_RC[:, i]) / factor_CC[i, i]
            rest_RC[:, i:stop] -= error_R[:, None] * factor_CC[i, i:stop]
            errors[:, i - start] = error_R
        rest_RC[:, stop:] -= errors @ factor_CC[start:stop, stop:]
    return rounded_RC
