"""What to know of the counts of desirable and undesirable answers before training on them. Light."""

from collections.abc import Iterator, Mapping
from typing import Any

from dualign.data.verdicts import VERDICTS, one_sided_modes
from dualign.preference.losses.settings import loss_settings

_HIGHEST = 4 / 3
_ROUNDING = 0.005


def verdict_notes(rows: Mapping[str, Any], train: Mapping[str, Any]) -> Iterator[str]:
    """Yield the counts of a stage's rows, and what is doubtful about them.

    Args:
        rows: ROWS of run.json.
        train: the stage's, checked.
    """
    settings = loss_settings(train)
    weights = (settings.desirable_weight, settings.undesirable_weight)
    good, bad = (rows[name] for name in VERDICTS)
    yield f"{good:,} desirable and {bad:,} undesirable answers"
    if advice := weight_advice(good, bad, weights):
        yield f"warning: {advice}"
    for mode in one_sided_modes(rows):
        yield f"warning: {mode}: the loss then teaches to use or to avoid the mode; give each mode both"


def weight_advice(good: int, bad: int, weights: tuple[float, float]) -> str | None:
    """Return what the KTO paper advises of the weights for these counts; None if they are in range, or
    if the counts are equal.

    Equation 8 of arXiv 2402.01306: desirable_weight x desirable rows is 1 to 4/3 times
    undesirable_weight x undesirable rows.
    """
    if good == bad or not (good and bad and all(weights)):
        return None
    ratio = weights[0] * good / (weights[1] * bad)
    if 1 - _ROUNDING <= ratio <= _HIGHEST + _ROUNDING:
        return None
    desirable, undesirable = weights[1] * bad / good, weights[0] * good / bad
    return (
        f"at weights {weights[0]:g} and {weights[1]:g} the desirable answers count {ratio:.2f} times as much as the "
        f"undesirable, where the KTO paper advises 1 to 1.33: set train.desirable_weight to {desirable:.2f} to "
        f"{desirable * _HIGHEST:.2f}, or train.undesirable_weight to {undesirable / _HIGHEST:.2f} to {undesirable:.2f}"
    )
