"""What the model that a stage starts from says of the pairs, and where that contradicts the loss.

By token, so that length doesn't decide: log pi_reference(chosen) / |chosen| against the same of rejected.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dualign.preference.losses.table import LOSSES

if TYPE_CHECKING:
    from dualign.preference.losses.scores import PairScores

logger = logging.getLogger(__name__)
_ENOUGH_PAIRS = 32


class StartMargins:
    """Margins of the first pairs under the reference, told once there are enough."""

    def __init__(self, losses: Sequence[str]) -> None:
        self._losses = losses
        self._margins: list[float] = []
        self._told = False

    def add(self, scores: "PairScores") -> None:
        """Add the pairs of a batch; nothing without a reference, or once they are told."""
        chosen_P, rejected_P = scores.reference_chosen, scores.reference_rejected
        if self._told or chosen_P is None or rejected_P is None:
            return
        margin_P = chosen_P / scores.chosen_tokens - rejected_P / scores.rejected_tokens
        self._margins += margin_P.tolist()

    def tell(self, *, warn: bool) -> dict[str, float]:
        """Return the figures for the log, the first time that there are enough; else nothing."""
        if self._told or len(self._margins) < _ENOUGH_PAIRS:
            return {}
        self._told = True
        figures = start_figures(self._margins)
        if warn and (warning := start_warning(self._losses, figures)):
            logger.warning(warning)
        return figures


def start_figures(margins: Sequence[float]) -> dict[str, float]:
    """Return the number of pairs, the share whose chosen answer is likelier, and the mean margin.

    `margins` are those of the start model, in nats by token.
    """
    pairs = len(margins)
    likelier = sum(margin > 0 for margin in margins) / pairs
    mean = math.fsum(margins) / pairs
    return {"start/pairs": pairs, "start/chosen_likelier": likelier, "start/margin": mean}


def start_metrics(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return `{"start": figures}` of the log's entry that has them; nothing if none has."""
    for entry in log:
        figures = {
            key.removeprefix("start/"): value
            for key, value in entry.items()
            if key.startswith("start/")
        }
        if figures:
            return {"start": figures}
    return {}


def start_line(figures: Mapping[str, float]) -> str:
    """Return the figures in words."""
    return (
        f"start model: finds the chosen answer likelier in {figures['start/chosen_likelier']:.0%} of "
        f"{figures['start/pairs']:.0f} pairs (margin {figures['start/margin']:.2f} nats a token)"
    )


def start_warning(losses: Sequence[str], figures: dict[str, float]) -> str | None:
    """Return what to look at, if rejected is likelier in most pairs and the loss may lower chosen.

    Most: by a share that a fair coin would hardly show (1.64 standard errors below one half).
    """
    pairs, likelier = figures["start/pairs"], figures["start/chosen_likelier"]
    if likelier > 0.5 - 1.64 * 0.5 / math.sqrt(pairs):
        return None
    says = (
        f"the start model finds the rejected answer likelier than the chosen in {1 - likelier:.0%} of "
        f"{pairs:.0f} pairs ({-figures['start/margin']:.2f} nats a token): it didn't write the chosen ones"
    )
    if "apo_down" in losses:
        return (
            f"{says}. apo_down lowers them further, which is right only if the model's own answers are "
            "better; if the chosen are better: apo_zero"
        )
    if all(LOSSES[name].of_difference for name in losses):
        return (
            f"{says}. {', '.join(losses)} compares the two alone, so both may get less likely (watch "
            "logps/chosen); apo_zero, nca_pair or sft in the mix raise chosen"
        )
    return None
