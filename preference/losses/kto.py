"""KTO, prospect theory on answers without partners (Ethayarajh et al., arXiv 2402.01306)."""

import torch
from torch import Tensor

from dualign.preference.losses.scores import RatedScores, signed
from dualign.preference.losses.settings import LossSettings


def kto(scores: RatedScores, settings: LossSettings) -> Tensor:
    """`1 - sigmoid(beta (r - z))` of a desirable answer, `1 - sigmoid(beta (z - r))` of another. [P] -> [P].

    Equation 7, with the weights of `verdict_weights`: r is the log-ratio to the reference, z the
    batch's estimate of KL(policy || reference), from other rows' answers and without gradient. An answer
    counts as a gain or a loss by how far it is from what the policy does on average. At the start it is 1/2.
    """
    distance_P = settings.beta * (scores.ratio - scores.kl)
    return verdict_weights(scores, settings) * (1 - torch.sigmoid(signed(distance_P, scores)))


def verdict_weights(scores: RatedScores, settings: LossSettings) -> Tensor:
    """Return desirable_weight or undesirable_weight (lambda_D, lambda_U) of each answer, [P]."""
    weights = (settings.desirable_weight, settings.undesirable_weight)
    good_P, bad_P = (torch.full_like(scores.answer, weight) for weight in weights)
    return torch.where(scores.desirable, good_P, bad_P)
