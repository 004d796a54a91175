"""BCO, a binary classifier of answers (Jung et al., arXiv 2404.04656), on pairs."""

import torch.nn.functional as F
from torch import Tensor

from dualign.preference.losses.scores import PairScores
from dualign.preference.losses.settings import LossSettings


def bco_pair(scores: PairScores, settings: LossSettings) -> Tensor:
    """`-log sigmoid(beta r_c) - log sigmoid(-beta r_r)`, section 4 without its shift. [P] -> [P].

    At the start it is 2 ln 2.
    """
    chosen_P, rejected_P = (
        settings.beta * scores.chosen_ratio,
        settings.beta * scores.rejected_ratio,
    )
    return -F.logsigmoid(chosen_P) - F.logsigmoid(-rejected_P)
