"""APO, which anchors each answer's likelihood (D'Oosterlinck et al., arXiv 2408.06266)."""

import torch
from torch import Tensor

from dualign.preference.losses.kto import verdict_weights
from dualign.preference.losses.scores import PairScores, RatedScores, signed
from dualign.preference.losses.settings import LossSettings


def zero(scores: PairScores, settings: LossSettings) -> Tensor:
    """`1 - sigmoid(beta r_c) + sigmoid(beta r_r)`, equation 7. [P] -> [P].

    Raises chosen and lowers rejected: for chosen answers that are better than the model's own.
    At the start the loss is 1.
    """
    chosen_P, rejected_P = (
        settings.beta * scores.chosen_ratio,
        settings.beta * scores.rejected_ratio,
    )
    return 1 - torch.sigmoid(chosen_P) + torch.sigmoid(rejected_P)


def down(scores: PairScores, settings: LossSettings) -> Tensor:
    """`sigmoid(beta r_c) + 1 - sigmoid(beta (r_c - r_r))`, equation 8. [P] -> [P].

    Lowers chosen, and rejected more: for a model whose own answers are better than the chosen.
    At the start the loss is 1.
    """
    chosen_P, rejected_P = (
        settings.beta * scores.chosen_ratio,
        settings.beta * scores.rejected_ratio,
    )
    return torch.sigmoid(chosen_P) + 1 - torch.sigmoid(chosen_P - rejected_P)


def zero_unpaired(scores: RatedScores, settings: LossSettings) -> Tensor:
    """`1 - sigmoid(beta r)` of a desirable answer, `sigmoid(beta r)` of another. [P] -> [P].

    Equation 7 for answers that have no partner, with the weights of `verdict_weights`; KTO with 0 in
    place of its z. At the start it is 1/2.
    """
    ratio_P = settings.beta * scores.ratio
    return verdict_weights(scores, settings) * (1 - torch.sigmoid(signed(ratio_P, scores)))
