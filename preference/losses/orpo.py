"""ORPO, SFT and preference in one step, without a reference (Hong et al., arXiv 2403.07691)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dualign.preference.losses.scores import PairScores
from dualign.preference.losses.settings import LossSettings
from dualign.preference.losses.sft import sft


def orpo(scores: PairScores, settings: LossSettings) -> Tensor:
    """`NLL(c) - beta log sigmoid(log odds(c) - log odds(r))`, equations 4 to 7. [P] -> [P].

    odds = p / (1 - p) with p = exp(log pi by token); beta is the paper's lambda. NLL is of the
    answer's tokens, as in the paper; TRL's ORPOTrainer counts the prompt's too.
    """
    odds_P = _log_odds(scores.chosen_mean) - _log_odds(scores.rejected_mean)
    return sft(scores, settings) - settings.beta * F.logsigmoid(odds_P)


def _log_odds(mean_P: Tensor) -> Tensor:
    """`x - log(1 - exp x)`: exact on both sides of x = -ln 2, finite up to x = 0."""
    # An answer that is certain, to the last bit, would have infinite odds.
    mean_P = mean_P.clamp(max=-torch.finfo(mean_P.dtype).eps)
    near_zero = mean_P > -math.log(2)
    # Both sides have finite gradients everywhere: the one that isn't taken counts 0 times its own.
    close_P = torch.log(-torch.expm1(mean_P))
    far_P = torch.log1p(-torch.exp(mean_P))
    return mean_P - torch.where(near_zero, close_P, far_P)
