"""SPPO, self-play preference optimization (Wu et al., arXiv 2405.00675)."""

from torch import Tensor

from dualign.preference.losses.scores import PairScores
from dualign.preference.losses.settings import LossSettings


def sppo_hard(scores: PairScores, settings: LossSettings) -> Tensor:
    """`(r_c - 1 / (2 beta))^2 + (r_r + 1 / (2 beta))^2`: equation 4.7 with wins of 1 and 0. [P] -> [P].

    beta is 1 / eta of the paper. At the start it is 1 / (2 beta^2).
    """
    target = 0.5 / settings.beta
    return (scores.chosen_ratio - target) ** 2 + (scores.rejected_ratio + target) ** 2
