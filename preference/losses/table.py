"""The losses, in one table: what each needs and assumes, and its function.

A new loss is a function `(PairScores, LossSettings) -> Tensor [P]` in a file of this folder, and a
row of `LOSSES`. Functions are named by text, so recipes are checked without torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class PairLoss:
    """What the other rooms ask of a loss."""

    implementation: str
    """MODULE:FUNCTION in this folder"""
    paper: str
    """arXiv number"""
    needs_reference: bool = True
    """compares with the log-probabilities of the model that the stage starts from"""
    of_difference: bool = False
    """a function of r(chosen) - r(rejected): f-divergences are defined for it"""

    @property
    def function(self) -> Callable[..., Any]:
        """The function `(PairScores, LossSettings) -> Tensor [P]`. Imports its module, and torch."""
        module, _, name = self.implementation.partition(":")
        return getattr(import_module(f"{__package__}.{module}"), name)  # type: ignore[no-any-return]


LOSSES: Mapping[str, PairLoss] = {
    "apo_zero": PairLoss(implementation="apo:zero", paper="2408.06266"),
    "apo_down": PairLoss(implementation="apo:down", paper="2408.06266"),
    "sigmoid": PairLoss(implementation="dpo:sigmoid", paper="2305.18290", of_difference=True),
    "ipo": PairLoss(implementation="ipo:ipo", paper="2310.12036", of_difference=True),
}
