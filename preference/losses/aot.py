"""AOT, alignment by optimal transport (Melnyk et al., arXiv 2406.05882).

The losses compare a batch's sorted values (quantiles), so they are larger batches' losses: their
values belong to ranks, not to pairs.
"""

import torch
from torch import Tensor

from dualign.preference.losses.dpo import smoothed
from dualign.preference.losses.scores import PairScores
from dualign.preference.losses.settings import LossSettings


def aot(scores: PairScores, settings: LossSettings) -> Tensor:
    """DPO's loss of `sort(log pi_c - log pi_r) - sort(the same of the reference)`. [P] -> [P].

    Paired AOT, smoothed by label_smoothing: the policy's margins dominate the reference's as a
    distribution. At the start it is ln 2.
    """
    assert scores.reference_chosen is not None and scores.reference_rejected is not None
    policy_P = _sorted(scores.chosen - scores.rejected)
    reference_P = _sorted(scores.reference_chosen - scores.reference_rejected)
    return smoothed(settings.beta * (policy_P - reference_P), settings.label_smoothing)


def aot_unpaired(scores: PairScores, settings: LossSettings) -> Tensor:
    """DPO's loss of `sort(r_c) - sort(r_r)`: no answer belongs to another. [P] -> [P].

    At the start it is ln 2.
    """
    margin_P = _sorted(scores.chosen_ratio) - _sorted(scores.rejected_ratio)
    return smoothed(settings.beta * margin_P, settings.label_smoothing)


def _sorted(values_P: Tensor) -> Tensor:
    return torch.sort(values_P).values
