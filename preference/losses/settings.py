"""What the losses read of a recipe's `train:`, by TRL's names and with TRL's defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSettings:
    """The losses of a stage, and their numbers."""

    losses: tuple[tuple[str, float], ...] = (("apo_zero", 1.0),)
    """(name in LOSSES, weight) of each loss in the mix"""
    beta: float = 0.1
    """how far the policy may go from the reference: more beta, less far (IPO calls it tau)"""
    label_smoothing: float = 0.0
    """the share of pairs whose answers are taken to be the wrong way round"""
    f_divergence_type: str = "reverse_kl"
    """what keeps the policy near the reference, for losses of a difference"""
    f_alpha_divergence_coef: float = 0.5
    """alpha of the alpha-divergence"""
    discopop_tau: float = 0.05
    """temperature of DiscoPOP's blend"""
    simpo_gamma: float = 0.5
    """margin that SimPO asks for, in nats of its reward"""
    cpo_alpha: float = 1.0
    """weight of CPO's negative log-likelihood"""
    desirable_weight: float = 1.0
    """weight of the good ones among rated answers"""
    undesirable_weight: float = 1.0
    """weight of the bad ones"""


def loss_names(train: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the losses that `train:` names. `{loss_type: ipo}` -> `("ipo",)`."""
    names = train.get("loss_type") or LossSettings().losses[0][0]
    names = [names] if isinstance(names, str) else names
    return tuple(map(str, names)) if isinstance(names, list | tuple) else ()


def loss_settings(train: Mapping[str, Any]) -> LossSettings:
    """Read `train:` of a recipe that was checked.

    `{loss_type: [sigmoid, sft], loss_weights: [1, 0.5]}` -> `losses = ((sigmoid, 1), (sft, 0.5))`.
    """
    names = loss_names(train)
    weights = train.get("loss_weights") or [1.0] * len(names)
    known = {field.name for field in fields(LossSettings)}
    values = {key: value for key, value in train.items() if key in known and value is not None}
    return LossSettings(losses=tuple(zip(names, weights, strict=True)), **values)
