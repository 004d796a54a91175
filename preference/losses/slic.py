"""The hinge of SLiC-HF (Zhao et al., arXiv 2305.10425)."""

import torch
from torch import Tensor

from dualign.preference.losses.divergences import difference
from dualign.preference.losses.scores import PairScores
from dualign.preference.losses.settings import LossSettings


def hinge(scores: PairScores, settings: LossSettings) -> Tensor:
    """`max(0, 1 - beta (r_c - r_r))`: the hinge on log-ratios, as in RSO (arXiv 2309.06657).

    A pair whose margin is 1 / beta teaches nothing more. [P] -> [P]. At the start it is 1.
    """
    return torch.relu(1 - settings.beta * difference(scores, settings))
