"""What is wrong with the losses that a recipe asks for, before torch is imported."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from dualign.config import nearest
from dualign.preference.losses.settings import LossSettings, loss_names
from dualign.preference.losses.table import LOSSES

Issue = tuple[str, str]
_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
# What papers and other tools call a loss.
_OTHER_NAMES: Mapping[str, str] = {
    "dpo": "sigmoid",
    "dpo_norm": "sigmoid_norm",
    "rdpo": "robust",
    "apo": "apo_zero",
    "slic": "hinge",
    "exo": "exo_pair",
    "nca": "nca_pair",
    "bco": "bco_pair",
    "sppo": "sppo_hard",
    "aot_pair": "aot",
    "nll": "sft",
    "rpo": "[sigmoid, sft]",
    "kto": "bco_pair, on pairs",
    "kto_pair": "bco_pair",
    "apo_zero_unpaired": "apo_zero, on pairs",
}
_ABOVE_ZERO: tuple[Callable[[float], bool], str] = (lambda value: value > 0, "more than 0")
_NUMBERS: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "beta": _ABOVE_ZERO,
    "discopop_tau": _ABOVE_ZERO,
    "simpo_gamma": (lambda value: value >= 0, "0 or more"),
    "cpo_alpha": (lambda value: value >= 0, "0 or more"),
    "label_smoothing": (lambda value: 0 <= value < 0.5, "0 or more, below 0.5"),
    "ld_alpha": (lambda value: 0 <= value <= 1, "0 to 1"),
}


def loss_problems(train: Mapping[str, Any]) -> list[Issue]:
    """Return the problems of `train:` as (key, message)."""
    names = loss_names(train)
    if train.get("loss_type") in ([], ""):
        return [("train.loss_type", "expected a loss, such as apo_zero, found none")]
    unknown = [f"unknown value {name!r}{_known(name)}" for name in names if name not in LOSSES]
    if unknown:
        return [("train.loss_type", message) for message in unknown]
    parts = (_numbers, _weights, _needed, _divergence, _weighting)
    return [(f"train.{key}", message) for part in parts for key, message in part(train, names)]


def unused_settings(train: Mapping[str, Any]) -> list[Issue]:
    """Return the settings that no loss of `train:` reads, though they aren't at their default."""
    names, defaults = (
        loss_names(train),
        {field.name: field.default for field in fields(LossSettings)},
    )
    issues = []
    for key in dict.fromkeys(key for loss in LOSSES.values() for key in loss.reads):
        readers = [name for name, loss in LOSSES.items() if key in loss.reads]
        if train.get(key) not in (defaults[key], None) and not set(readers) & set(names):
            belongs = f"it belongs to {', '.join(readers)}"
            issues.append((f"train.{key}", f"has no effect here: {belongs}; remove it"))
    return issues


def _known(name: str) -> str:
    here = _OTHER_NAMES.get(name.lower())
    return f" (here: {here})" if here else nearest(name, list(LOSSES))


def _numbers(train: Mapping[str, Any], _: Sequence[str]) -> Iterator[Issue]:
    for key, (holds, expected) in _NUMBERS.items():
        value = train.get(key)
        if isinstance(value, int | float) and not holds(value):
            yield key, f"expected {expected}, found {value}"


def _weights(train: Mapping[str, Any], names: Sequence[str]) -> Iterator[Issue]:
    weights = train.get("loss_weights")
    if not isinstance(weights, list):
        return
    if len(weights) != len(names):
        counts = f"{len(weights)} weights for {len(names)} losses ({', '.join(names)})"
        yield "loss_weights", f"expected a weight for each of loss_type, found {counts}"
    elif not all(isinstance(weight, int | float) for weight in weights):
        yield "loss_weights", f"expected numbers, found {weights!r}"


def _needed(train: Mapping[str, Any], names: Sequence[str]) -> Iterator[Issue]:
    if "exo_pair" in names and not train.get("label_smoothing"):
        yield "label_smoothing", "exo_pair takes its logarithm: expected more than 0, such as 1e-3"
    if "simpo" in names and "beta" not in train:
        yield "beta", "simpo compares means by token, where 0.1 is next to nothing: set 2 to 10"


def _divergence(train: Mapping[str, Any], names: Sequence[str]) -> Iterator[Issue]:
    divergence = train.get("f_divergence_type", _DIVERGENCES[0])
    if divergence not in _DIVERGENCES:
        known = nearest(str(divergence), _DIVERGENCES)
        yield "f_divergence_type", f"unknown value {divergence!r}{known}"
        return
    defined = [name for name, loss in LOSSES.items() if loss.of_difference or name == "sft"]
    others = [name for name in names if name not in defined]
    if divergence != _DIVERGENCES[0] and others:
        yield (
            "f_divergence_type",
            f"{divergence} is defined for {', '.join(defined)}, not for {others[0]}",
        )


def _weighting(train: Mapping[str, Any], names: Sequence[str]) -> Iterator[Issue]:
    ranked = [name for name in names if LOSSES[name].of_ranks]
    if train.get("use_weighting") and ranked:
        yield "use_weighting", f"weighs pairs, and {ranked[0]} sorts its batch: remove one"
