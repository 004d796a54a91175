"""PairScores: what a batch of pairs scored, and the weighted mix of losses of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dualign.preference.losses.settings import LossSettings
from dualign.preference.losses.table import LOSSES


@dataclass(frozen=True, kw_only=True, slots=True)
class PairScores:
    """Log-probabilities of P pairs in nats, each summed over the tokens of an answer: [P]."""

    chosen: Tensor
    """log pi(chosen | prompt) under the policy"""
    rejected: Tensor
    """log pi(rejected | prompt) under the policy"""
    reference_chosen: Tensor | None
    """the same under the reference, without gradient; None if no loss of the mix has one"""
    reference_rejected: Tensor | None
    chosen_tokens: Tensor
    """number of supervised tokens of chosen"""
    rejected_tokens: Tensor

    @property
    def chosen_ratio(self) -> Tensor:
        """log pi(chosen) - log pi_reference(chosen), [P]."""
        assert self.reference_chosen is not None
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """log pi(rejected) - log pi_reference(rejected), [P]."""
        assert self.reference_rejected is not None
        return self.rejected - self.reference_rejected


def preference_loss(scores: PairScores, settings: LossSettings) -> Tensor:
    """Return the weighted sum of the losses for each pair, [P]. A batch's loss is its mean."""
    loss_P: Tensor = torch.zeros_like(scores.chosen)
    for name, weight in settings.losses:
        loss_P = loss_P + weight * LOSSES[name].function(scores, settings)
    return loss_P
