"""IPO (Azar et al., arXiv 2310.12036)."""

from torch import Tensor

from dualign.preference.losses.divergences import mean_difference
from dualign.preference.losses.scores import PairScores
from dualign.preference.losses.settings import LossSettings


def ipo(scores: PairScores, settings: LossSettings) -> Tensor:
    """`(r_c / |c| - r_r / |r| - 1 / (2 beta))^2`, equation 17 with tau = beta. [P] -> [P].

    r are the log-ratios, by their number of tokens: the target of the difference doesn't depend on
    length (the authors' form, which TRL has too). At the start the loss is 1 / (4 beta^2).
    """
    return (mean_difference(scores, settings) - 1 / (2 * settings.beta)) ** 2
