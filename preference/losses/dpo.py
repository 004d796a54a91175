"""DPO (Rafailov et al., arXiv 2305.18290), by length, and with labels that may be wrong."""

import torch.nn.functional as F
from torch import Tensor

from dualign.preference.losses.divergences import difference, mean_difference
from dualign.preference.losses.scores import PairScores
from dualign.preference.losses.settings import LossSettings


def sigmoid(scores: PairScores, settings: LossSettings) -> Tensor:
    """`-log sigmoid(beta (r_c - r_r))`, equation 7; r are the log-ratios. [P] -> [P].

    At the start both ratios are 0, and the loss is ln 2.
    """
    return -F.logsigmoid(settings.beta * difference(scores, settings))


def sigmoid_norm(scores: PairScores, settings: LossSettings) -> Tensor:
    """`-log sigmoid(beta (r_c / |c| - r_r / |r|))` (Tulu 3, arXiv 2411.15124). [P] -> [P].

    The ratios are means over tokens, so length alone brings nothing. At the start it is ln 2.
    """
    return -F.logsigmoid(settings.beta * mean_difference(scores, settings))


def robust(scores: PairScores, settings: LossSettings) -> Tensor:
    """`((1 - e) L(c, r) - e L(r, c)) / (1 - 2e)` (Chowdhury et al., arXiv 2403.00409, section 3).

    L is DPO's loss and e = label_smoothing, below 0.5: the share of pairs with flipped labels. The
    expectation over the flips is the loss of the true labels. [P] -> [P]. At the start it is ln 2.
    """
    margin_P, flipped = settings.beta * difference(scores, settings), settings.label_smoothing
    right_P, wrong_P = -F.logsigmoid(margin_P), -F.logsigmoid(-margin_P)
    return ((1 - flipped) * right_P - flipped * wrong_P) / (1 - 2 * flipped)


def smoothed(margin_P: Tensor, label_smoothing: float) -> Tensor:
    """`-(1 - e) log sigmoid(m) - e log sigmoid(-m)`: DPO's loss if labels hold by 1 - e. [P]."""
    keep = 1 - label_smoothing
    return -keep * F.logsigmoid(margin_P) - label_smoothing * F.logsigmoid(-margin_P)
