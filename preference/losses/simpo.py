"""SimPO, without a reference (Meng et al., arXiv 2405.14734)."""

from torch import Tensor

from dualign.preference.losses.dpo import smoothed
from dualign.preference.losses.scores import PairScores
from dualign.preference.losses.settings import LossSettings


def simpo(scores: PairScores, settings: LossSettings) -> Tensor:
    """`-log sigmoid(beta (m_c - m_r) - gamma)`, equation 6; m = log pi by token. [P] -> [P].

    gamma = simpo_gamma is the margin asked for; label_smoothing as in TRL's CPOTrainer. The paper
    has no likelihood term: `loss_type: [simpo, sft]` adds one.
    """
    margin_P = settings.beta * (scores.chosen_mean - scores.rejected_mean)
    return smoothed(margin_P - settings.simpo_gamma, settings.label_smoothing)
