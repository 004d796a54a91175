"""NCA, noise-contrastive alignment (Chen et al., arXiv 2402.05369)."""

import torch.nn.functional as F
from torch import Tensor

from dualign.preference.losses.scores import PairScores
from dualign.preference.losses.settings import LossSettings


def nca_pair(scores: PairScores, settings: LossSettings) -> Tensor:
    """`-ls(b r_c) - ls(-b r_c) / 2 - ls(-b r_r) / 2`, section 4.1 with K = 2; ls = log sigmoid.

    The likelihood of chosen itself counts, not the difference alone, so it doesn't fall.
    b = beta. [P] -> [P]. At the start it is 2 ln 2.
    """
    chosen_P, rejected_P = (
        settings.beta * scores.chosen_ratio,
        settings.beta * scores.rejected_ratio,
    )
    noise_P = F.logsigmoid(-chosen_P) + F.logsigmoid(-rejected_P)
    return -F.logsigmoid(chosen_P) - 0.5 * noise_P
