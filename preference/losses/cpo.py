"""CPO, without a reference (Xu et al., arXiv 2401.08417)."""

from torch import Tensor

from dualign.preference.losses.dpo import smoothed
from dualign.preference.losses.scores import PairScores
from dualign.preference.losses.settings import LossSettings
from dualign.preference.losses.sft import sft


def cpo(scores: PairScores, settings: LossSettings) -> Tensor:
    """`-log sigmoid(beta (log pi_c - log pi_r)) + cpo_alpha NLL(c)`, section 3. [P] -> [P].

    The likelihood term stands for the reference; smoothed by label_smoothing as in TRL.
    """
    margin_P = settings.beta * (scores.chosen - scores.rejected)
    likelihood_P = settings.cpo_alpha * sft(scores, settings)
    return smoothed(margin_P, settings.label_smoothing) + likelihood_P
