"""What is wrong with the losses that a recipe asks for, before torch is imported."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from dualign.config import nearest
from dualign.preference.losses.settings import LossSettings, loss_names
from dualign.preference.losses.table import LOSSES, estimates_kl

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
    "kto_pair": "bco_pair; kto, on answers without partners",
}
_ABOVE_ZERO: tuple[Callable[[float], bool], str] = (lambda value: value > 0, "more than 0")
_NUMBERS: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "beta": _ABOVE_ZERO,
    "discopop_tau": _ABOVE_ZERO,
    "simpo_gamma": (lambda value: value >= 0, "0 or more"),
    "cpo_alpha": (lambda value: value >= 0, "0 or more"),
    "desirable_weight": (lambda value: value >= 0, "0 or more"),
    "undesirable_weight": (lambda value: value >= 0, "0 or more"),
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
    parts = (_numbers, _weights, _needed, _divergence, _weighting, _rated)
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


def _rated(train: Mapping[str, Any], names: Sequence[str]) -> Iterator[Issue]:
    """Refuse what rated answers can't have: pairs beside them, and batches that KTO's KL can't use."""
    rated = [name for name in names if LOSSES[name].of_rated]
    if not rated:
        return
    others = [name for name in names if name not in rated]
    if others:
        says = (
            f"{rated[0]} takes rated answers, {others[0]} pairs: expected losses of one kind of row"
        )
        yield "loss_type", says
    for key in ("ld_alpha", "use_weighting"):
        if train.get(key) not in (None, False):
            yield key, f"is for pairs, and {rated[0]} takes rated answers: remove it"
    if not any(train.get(key, 1) for key in ("desirable_weight", "undesirable_weight")):
        yield "desirable_weight", "this and undesirable_weight are 0: nothing would be learned"
    if not estimates_kl(rated):
        return
    rotates = f"{rated[0]} scores each prompt with the answer of another row of its batch"
    if train.get("per_device_train_batch_size", 2) == 1:
        yield "per_device_train_batch_size", f"{rotates}: expected 2 or more, found 1"
    if train.get("train_sampling_strategy", "sequential") != "sequential":
        says = f"{rotates}, so batches are the same in every epoch: remove it (rows are shuffled once, by the seed)"
        yield "train_sampling_strategy", says
    if train.get("auto_find_batch_size"):
        yield "auto_find_batch_size", f"{rotates}, and batches may not change: remove it"
