"""DPO (Rafailov et al., arXiv 2305.18290)."""

import torch.nn.functional as F
from torch import Tensor

from dualign.preference.losses.scores import PairScores
from dualign.preference.losses.settings import LossSettings


def sigmoid(scores: PairScores, settings: LossSettings) -> Tensor:
    """`-log sigmoid(beta (r_c - r_r))`, equation 7; r are the log-ratios. [P] -> [P].

    At the start both ratios are 0, and the loss is ln 2.
    """
    return -F.logsigmoid(settings.beta * (scores.chosen_ratio - scores.rejected_ratio))
