"""The losses, in one table: what each needs, and its function.

A new loss is a function `(PairScores, LossSettings) -> Tensor [P]` in a file of this folder, and a
row of `LOSSES`; one of rated answers gets `RatedScores`. Functions are named by text, so recipes are checked without torch.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceLoss:
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
    of_rated: bool = False
    """of answers that are good or bad, which have no partner (RatedScores)"""
    estimates_kl: bool = False
    """of rated answers: needs answers to other prompts than theirs"""
    reads: tuple[str, ...] = ()
    """the settings that it uses besides beta"""

    @property
    def function(self) -> Callable[..., Any]:
        """The function `(scores, LossSettings) -> Tensor [P]`. Imports its module, and torch."""
        module, _, name = self.implementation.partition(":")
        return getattr(import_module(f"{__package__}.{module}"), name)  # type: ignore[no-any-return]


def of_rated(names: Iterable[str]) -> bool:
    """Return whether these losses take rated answers instead of pairs. One recipe has one of the two."""
    return any(LOSSES[name].of_rated for name in names if name in LOSSES)


def estimates_kl(names: Iterable[str]) -> bool:
    """Return whether a loss of these estimates a KL from answers to other prompts than theirs."""
    return any(LOSSES[name].estimates_kl for name in names if name in LOSSES)


def needs_reference(names: Iterable[str]) -> bool:
    """Return whether a loss of these compares with the log-probabilities of a reference."""
    return any(LOSSES[name].needs_reference for name in names if name in LOSSES)


_SMOOTHED = ("label_smoothing",)
_VERDICTS = ("desirable_weight", "undesirable_weight")

LOSSES: Mapping[str, PreferenceLoss] = {
    "apo_zero": PreferenceLoss(implementation="apo:zero", paper="2408.06266"),
    "apo_down": PreferenceLoss(implementation="apo:down", paper="2408.06266"),
    "sigmoid": PreferenceLoss(implementation="dpo:sigmoid", paper="2305.18290", of_difference=True),
    "sigmoid_norm": PreferenceLoss(
        implementation="dpo:sigmoid_norm", paper="2411.15124", of_difference=True
    ),
    "robust": PreferenceLoss(
        implementation="dpo:robust", paper="2403.00409", of_difference=True, reads=_SMOOTHED
    ),
    "ipo": PreferenceLoss(implementation="ipo:ipo", paper="2310.12036", of_difference=True),
    "hinge": PreferenceLoss(implementation="slic:hinge", paper="2305.10425", of_difference=True),
    "exo_pair": PreferenceLoss(
        implementation="exo:exo_pair", paper="2402.00856", of_difference=True, reads=_SMOOTHED
    ),
    "nca_pair": PreferenceLoss(implementation="nca:nca_pair", paper="2402.05369"),
    "bco_pair": PreferenceLoss(implementation="bco:bco_pair", paper="2404.04656"),
    "sppo_hard": PreferenceLoss(implementation="sppo:sppo_hard", paper="2405.00675"),
    "aot": PreferenceLoss(
        implementation="aot:aot", paper="2406.05882", of_ranks=True, reads=_SMOOTHED
    ),
    "aot_unpaired": PreferenceLoss(
        implementation="aot:aot_unpaired", paper="2406.05882", of_ranks=True, reads=_SMOOTHED
    ),
    "discopop": PreferenceLoss(
        implementation="discopop:discopop",
        paper="2406.08414",
        of_difference=True,
        reads=("discopop_tau",),
    ),
    "sft": PreferenceLoss(implementation="sft:sft", paper="2404.19733", needs_reference=False),
    "simpo": PreferenceLoss(
        implementation="simpo:simpo",
        paper="2405.14734",
        needs_reference=False,
        of_means=True,
        reads=("simpo_gamma", *_SMOOTHED),
    ),
    "cpo": PreferenceLoss(
        implementation="cpo:cpo",
        paper="2401.08417",
        needs_reference=False,
        reads=("cpo_alpha", *_SMOOTHED),
    ),
    "orpo": PreferenceLoss(
        implementation="orpo:orpo", paper="2403.07691", needs_reference=False, of_means=True
    ),
    "kto": PreferenceLoss(
        implementation="kto:kto",
        paper="2402.01306",
        of_rated=True,
        estimates_kl=True,
        reads=_VERDICTS,
    ),
    "apo_zero_unpaired": PreferenceLoss(
        implementation="apo:zero_unpaired", paper="2408.06266", of_rated=True, reads=_VERDICTS
    ),
}
