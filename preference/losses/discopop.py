"""DiscoPOP, a loss that a language model found (Lu et al., arXiv 2406.08414)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dualign.preference.losses.divergences import bounded_exp, difference
from dualign.preference.losses.scores import PairScores
from dualign.preference.losses.settings import LossSettings


def discopop(scores: PairScores, settings: LossSettings) -> Tensor:
    """`(1 - w) -log sigmoid(m) + w exp(-m)`, w = sigmoid(m / tau), m = beta (r_c - r_r). [P] -> [P].

    Equation 5: DPO's loss for pairs that are the wrong way round, an exponential for the others.
    At the start it is (ln 2 + 1) / 2.
    """
    margin_P = settings.beta * difference(scores, settings)
    blend_P = torch.sigmoid(margin_P / settings.discopop_tau)
    return -F.logsigmoid(margin_P) * (1 - blend_P) + bounded_exp(-margin_P) * blend_P
