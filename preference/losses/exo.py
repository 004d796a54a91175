"""EXO (Ji et al., arXiv 2402.00856)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dualign.preference.losses.divergences import difference
from dualign.preference.losses.scores import PairScores
from dualign.preference.losses.settings import LossSettings


def exo_pair(scores: PairScores, settings: LossSettings) -> Tensor:
    """`KL(q || p)`, equation 16 with K = 2: q = softmax(beta r) of the two answers, p = (1 - e, e).

    e = label_smoothing, above 0. The mean-seeking KL of DPO turned round. [P] -> [P].
    At the start it is `ln(1/2) - ln(e (1 - e)) / 2`.
    """
    margin_P, flipped = settings.beta * difference(scores, settings), settings.label_smoothing
    chosen_P, rejected_P = torch.sigmoid(margin_P), torch.sigmoid(-margin_P)
    right_P = chosen_P * (F.logsigmoid(margin_P) - math.log1p(-flipped))
    return right_P + rejected_P * (F.logsigmoid(-margin_P) - math.log(flipped))
