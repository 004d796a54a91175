"""The likelihood of the chosen answers: SFT in a mix, as in RPO and MPO."""

from torch import Tensor

from dualign.preference.losses.scores import PairScores
from dualign.preference.losses.settings import LossSettings


def sft(scores: PairScores, settings: LossSettings) -> Tensor:
    """`-sum log pi(chosen) / number of tokens` of the batch, the same for each pair. [P] -> [P].

    With `loss_type: [sigmoid, sft]` it is RPO's term (arXiv 2404.19733, eq. 1), which holds the
    likelihood of chosen up; by token over the batch, as TRL has it.
    """
    chosen_P = scores.chosen if scores.unweighted_chosen is None else scores.unweighted_chosen
    mean = -chosen_P.sum() / scores.chosen_tokens.sum().clamp(min=1)
    return mean.expand(len(chosen_P))
