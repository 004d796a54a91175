"""The losses, in one table: what each needs, and its function.

A new loss is a function `(PairScores, LossSettings) -> Tensor [P]` in a file of this folder, and a
row of `LOSSES`. Functions are named by text, so recipes are checked without torch.
"""

from collections.abc import Callable, Iterable, Mapping
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
    """a function of f'(chosen) - f'(rejected): f-divergences other than reverse KL are defined"""
    of_means: bool = False
    """without a reference: compares log-probabilities by token"""
    of_ranks: bool = False
    """sorts the batch, so a value belongs to no pair and can't have a pair's weight (WPO)"""
    reads: tuple[str, ...] = ()
    """the settings that it uses besides beta"""

    @property
    def function(self) -> Callable[..., Any]:
        """The function `(PairScores, LossSettings) -> Tensor [P]`. Imports its module, and torch."""
        module, _, name = self.implementation.partition(":")
        return getattr(import_module(f"{__package__}.{module}"), name)  # type: ignore[no-any-return]


def needs_reference(names: Iterable[str]) -> bool:
    """Return whether a loss of these compares with the log-probabilities of a reference."""
    return any(LOSSES[name].needs_reference for name in names if name in LOSSES)


_SMOOTHED = ("label_smoothing",)

LOSSES: Mapping[str, PairLoss] = {
    "apo_zero": PairLoss(implementation="apo:zero", paper="2408.06266"),
    "apo_down": PairLoss(implementation="apo:down", paper="2408.06266"),
    "sigmoid": PairLoss(implementation="dpo:sigmoid", paper="2305.18290", of_difference=True),
    "sigmoid_norm": PairLoss(
        implementation="dpo:sigmoid_norm", paper="2411.15124", of_difference=True
    ),
    "robust": PairLoss(
        implementation="dpo:robust", paper="2403.00409", of_difference=True, reads=_SMOOTHED
    ),
    "ipo": PairLoss(implementation="ipo:ipo", paper="2310.12036", of_difference=True),
    "hinge": PairLoss(implementation="slic:hinge", paper="2305.10425", of_difference=True),
    "exo_pair": PairLoss(
        implementation="exo:exo_pair", paper="2402.00856", of_difference=True, reads=_SMOOTHED
    ),
    "nca_pair": PairLoss(implementation="nca:nca_pair", paper="2402.05369"),
    "bco_pair": PairLoss(implementation="bco:bco_pair", paper="2404.04656"),
    "sppo_hard": PairLoss(implementation="sppo:sppo_hard", paper="2405.00675"),
    "aot": PairLoss(implementation="aot:aot", paper="2406.05882", of_ranks=True, reads=_SMOOTHED),
    "aot_unpaired": PairLoss(
        implementation="aot:aot_unpaired", paper="2406.05882", of_ranks=True, reads=_SMOOTHED
    ),
    "discopop": PairLoss(
        implementation="discopop:discopop",
        paper="2406.08414",
        of_difference=True,
        reads=("discopop_tau",),
    ),
    "sft": PairLoss(implementation="sft:sft", paper="2404.19733", needs_reference=False),
    "simpo": PairLoss(
        implementation="simpo:simpo",
        paper="2405.14734",
        needs_reference=False,
        of_means=True,
        reads=("simpo_gamma", *_SMOOTHED),
    ),
    "cpo": PairLoss(
        implementation="cpo:cpo",
        paper="2401.08417",
        needs_reference=False,
        reads=("cpo_alpha", *_SMOOTHED),
    ),
    "orpo": PairLoss(
        implementation="orpo:orpo", paper="2403.07691", needs_reference=False, of_means=True
    ),
}
