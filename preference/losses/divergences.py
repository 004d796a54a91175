"""f-DPO: other divergences than KL between policy and reference (Wang et al., arXiv 2309.16240)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dualign.preference.losses.scores import PairScores
from dualign.preference.losses.settings import LossSettings

# The largest exponent whose power is still far from float32's end.
_LARGEST_EXPONENT = 80.0


def difference(scores: PairScores, settings: LossSettings) -> Tensor:
    """`f'(t_c) - f'(t_r)` with t the likelihood ratios to the reference, theorem 1. [P] -> [P].

    For reverse KL, DPO's own, it is the difference of the log-ratios.
    """
    return _penalty(scores.chosen_ratio, settings) - _penalty(scores.rejected_ratio, settings)


def mean_difference(scores: PairScores, settings: LossSettings) -> Tensor:
    """`f'(t_c) / |c| - f'(t_r) / |r|`: each answer's part by its number of tokens. [P] -> [P]."""
    chosen_P = _penalty(scores.chosen_ratio, settings) / scores.chosen_tokens.clamp(min=1)
    rejected_P = _penalty(scores.rejected_ratio, settings) / scores.rejected_tokens.clamp(min=1)
    return chosen_P - rejected_P


def _penalty(ratio_P: Tensor, settings: LossSettings) -> Tensor:
    """`f'(t)`, moved to be 0 at t = 1, of the log-ratios log t. [P] -> [P].

    reverse_kl: `log t`. forward_kl: `1 - 1/t`. js_divergence: `log(2t / (t + 1))`.
    alpha_divergence: `(t^(alpha - 1) - 1) / (alpha - 1)`, which is `log t` at alpha = 1.
    """
    kind, power = settings.f_divergence_type, settings.f_alpha_divergence_coef - 1
    if kind == "forward_kl":
        return 1 - bounded_exp(-ratio_P)
    if kind == "js_divergence":
        return math.log(2) + F.logsigmoid(ratio_P)
    if kind == "alpha_divergence" and abs(power) >= 1e-6:
        return (bounded_exp(power * ratio_P) - 1) / power
    return ratio_P


def bounded_exp(exponent_P: Tensor) -> Tensor:
    """`exp(x)`, finite for every finite x. [P] -> [P]."""
    return torch.exp(exponent_P.clamp(max=_LARGEST_EXPONENT))
