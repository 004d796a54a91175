"""What a batch of pairs, or of rated answers, scored; the weighted mix of losses of it, and its rewards."""

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
    """the same under the reference, without gradient; None if no loss of the mix needs it"""
    reference_rejected: Tensor | None
    chosen_tokens: Tensor
    """number of supervised tokens of chosen"""
    rejected_tokens: Tensor
    unweighted_chosen: Tensor | None = None
    """log pi(chosen | prompt) where `chosen` is a weighted sum (ld_alpha); None: it is `chosen`"""
    weights: Tensor | None = None
    """factor of each pair, without gradient (WPO); None: 1"""

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

    @property
    def chosen_mean(self) -> Tensor:
        """log pi(chosen) by its number of tokens, [P]."""
        return self.chosen / self.chosen_tokens.clamp(min=1)

    @property
    def rejected_mean(self) -> Tensor:
        """log pi(rejected) by its number of tokens, [P]."""
        return self.rejected / self.rejected_tokens.clamp(min=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class RatedScores:
    """Log-probabilities of P answers to P prompts in nats, each summed over an answer's tokens: [P]."""

    answer: Tensor
    """log pi(answer | prompt) under the policy"""
    reference: Tensor
    """the same under the reference, without gradient"""
    desirable: Tensor
    """whether the answer is a good one, bool"""
    kl: Tensor
    """estimate of KL(policy || reference), one number without gradient; 0 if no loss of the mix has one"""

    @property
    def ratio(self) -> Tensor:
        """log pi(answer) - log pi_reference(answer), [P]."""
        return self.answer - self.reference


Scores = PairScores | RatedScores


def signed(values_P: Tensor, scores: RatedScores) -> Tensor:
    """Return the values of desirable answers, and those of undesirable ones negated. [P] -> [P]."""
    return torch.where(scores.desirable, values_P, -values_P)


def kl_estimate(mismatched_P: Tensor, reference_P: Tensor) -> Tensor:
    """Return the mean log-ratio of answers to other prompts than theirs, before it is held at 0. [P] -> [].

    KTO's z without its max(0, .) (arXiv 2402.01306, section 4.1), which follows the mean over all ranks.
    """
    return (mismatched_P - reference_P).detach().mean()


def preference_loss(scores: Scores, settings: LossSettings) -> Tensor:
    """Return the weighted sum of the losses for each pair or answer, [P]. A batch's loss is its mean."""
    parts: list[Tensor] = [
        weight * LOSSES[name].function(scores, settings) for name, weight in settings.losses
    ]
    loss_P = sum(parts[1:], parts[0])
    weights_P = scores.weights if isinstance(scores, PairScores) else None
    return loss_P if weights_P is None else loss_P * weights_P


def rewards(scores: PairScores, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """Return what the policy pays for chosen and rejected: [P] each, without gradient.

    beta times the log-ratio; without a reference, beta times the log-probability, per token if a
    loss of the mix compares means.
    """
    if scores.reference_chosen is not None:
        chosen_P, rejected_P = scores.chosen_ratio, scores.rejected_ratio
    elif any(LOSSES[name].of_means for name, _ in settings.losses):
        chosen_P, rejected_P = scores.chosen_mean, scores.rejected_mean
    else:
        chosen_P, rejected_P = scores.chosen, scores.rejected
    return settings.beta * chosen_P.detach(), settings.beta * rejected_P.detach()


def token_weights(chosen_tokens: Tensor, rejected_tokens: Tensor, ld_alpha: float) -> Tensor:
    """Return the weight of each token's log-probability, [N] (LD-DPO, arXiv 2409.06411).

    The tokens lie as chosen and rejected of the first pair, then of the second, ... What one answer
    has beyond the length of the other weighs ld_alpha, so that length alone brings less reward:

        answers of 3 and 5 tokens, ld_alpha 0.5 -> 1 1 1, 1 1 1 0.5 0.5
    """
    counts = torch.stack([chosen_tokens, rejected_tokens], dim=1).flatten()
    shared = torch.minimum(chosen_tokens, rejected_tokens).repeat_interleave(2)
    starts = counts.cumsum(0) - counts
    places = torch.arange(int(counts.sum()), device=counts.device)
    tail_N = places - starts.repeat_interleave(counts) >= shared.repeat_interleave(counts)
    return torch.where(tail_N, ld_alpha, 1.0)
