"""Method parameters in a config: numbers, gradients over the layers, filters by tensor name.

    weight: 0.5                                    for every tensor
    weight: [0, 0.5, 1]                            linear from the first layer to the last
    weight: [{filter: mlp, value: 0.3}, {value: 0.5}]    the first entry whose filter fits

A filter is a part of the tensor's name; `*`, or no filter, fits every tensor. The value of an entry
may be a gradient. If no entry fits, the parameter is looked up at the next level: model, slice,
whole config.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dualign.config import Key, dotted, nearest, nearest_key
from dualign.errors import MergeError
from dualign.merging.methods.table import METHODS, Parameter

Value = float | bool


@dataclass(frozen=True, slots=True)
class Level:
    """The parameters at one place of a config: a model, a slice, or the whole config."""

    key: Key
    values: Mapping[str, Any]


@dataclass(slots=True)
class Resolver:
    """Looks parameters up, and records the entries that had an effect."""

    used: set[Key] = field(default_factory=set)

    def value(
        self, name: str, spec: Parameter, levels: Sequence[Level], *, tensor: str, position: float
    ) -> Value:
        """Return the parameter for a tensor in the layer at `position`: 0 is the first, 1 the last.

        Raises:
            MergeError: no level has it, and it has no default.
        """
        for level in levels:
            if name in level.values:
                match = _first_fit(level.values[name], tensor)
                if match is not None:
                    entry, setting = match
                    self.used.add((*level.key, name, *entry))
                    return _interpolated(setting, position)
        if spec.default is None:
            keys = " or ".join(dotted(level.key) for level in levels if level.key)
            raise MergeError(f"{tensor}: no {name} is given for it; set {name} in {keys}")
        return spec.default

    def unused(self, levels: Sequence[Level]) -> list[Key]:
        """Return the keys of entries that no tensor used."""
        keys = dict.fromkeys(key for level in levels for key in _entries(level))
        return [key for key in keys if key not in self.used]


def _interpolated(setting: Any, position: float) -> Value:
    """Return a number, or a gradient's value: [0, 0.5, 1] at position 0.25 is 0.25."""
    if not isinstance(setting, list):
        return setting  # type: ignore[no-any-return]  # checked by `parameter_problems`
    scaled = position * (len(setting) - 1)
    low = min(math.floor(scaled), len(setting) - 1)
    high = min(low + 1, len(setting) - 1)
    return float(setting[low] + (setting[high] - setting[low]) * (scaled - low))


def _first_fit(setting: Any, tensor: str) -> tuple[Key, Any] | None:
    """Return the key of the entry that fits the tensor, and its number or gradient."""
    if not _has_filters(setting):
        return (), setting
    for i, entry in enumerate(setting):
        filter_ = entry.get("filter")
        if filter_ in (None, "*") or filter_ in tensor:
            return (i,), entry["value"]
    return None


def _has_filters(setting: Any) -> bool:
    return isinstance(setting, list) and any(isinstance(entry, dict) for entry in setting)


def _entries(level: Level) -> Iterator[Key]:
    for name, setting in level.values.items():
        if _has_filters(setting):
            yield from ((*level.key, name, i) for i in range(len(setting)))
        else:
            yield (*level.key, name)


_NAMES = sorted({name for spec in METHODS.values() for name in (*spec.parameters, *spec.per_model)})


def parameter_problems(
    method: str, values: Mapping[str, Any], *, of_model: bool
) -> list[tuple[Key, str]]:
    """Check the parameters at one level, with `of_model` a model's; return (key, problem)."""
    spec = METHODS[method]
    fitting = spec.per_model if of_model else spec.parameters
    issues: list[tuple[Key, str]] = []
    for name, setting in values.items():
        if name in fitting:
            issues += [
                ((name, *key), why) for key, why in _setting_problems(setting, fitting[name])
            ]
        elif name in spec.global_:
            issues.append(
                ((name,), f"{name} has one value for all models: set it in the outer parameters")
            )
        else:
            hint = nearest(name, list(fitting)) if fitting else " (it takes none)"
            other = nearest_key(name, _NAMES)
            if other and not nearest_key(name, list(fitting)):
                hint = f" (did you mean {other!r}, of other methods?)"
            issues.append(((name,), f"{method} has no such parameter{hint}"))
    return issues


def _setting_problems(setting: Any, spec: Parameter) -> list[tuple[Key, str]]:
    if isinstance(setting, dict):
        return [((), "an entry with a filter has to be in a list: [{filter: ..., value: ...}]")]
    if not _has_filters(setting):
        return [((), why) for why in _gradient_problems(setting, spec)]
    issues: list[tuple[Key, str]] = []
    for i, entry in enumerate(setting):
        if not isinstance(entry, dict) or "value" not in entry:
            issues.append(((i,), "expected {filter: part of a name, value: ...}"))
            continue
        issues += [
            ((i, key), f"unknown key{nearest(key, ['filter', 'value'])}")
            for key in entry
            if key not in ("filter", "value")
        ]
        if not isinstance(entry.get("filter", ""), str | None):
            issues.append(((i, "filter"), "expected a part of a tensor's name"))
        issues += [((i, "value"), why) for why in _gradient_problems(entry["value"], spec)]
        if entry.get("filter") in (None, "*") and i + 1 < len(setting):
            issues.append(((i + 1,), "has no effect: the entry before it fits every tensor"))
            break
    return issues


def _gradient_problems(setting: Any, spec: Parameter) -> list[str]:
    if not isinstance(setting, list):
        return _value_problems(setting, spec)
    if spec.kind != "number":
        return ["a gradient needs a parameter that is a number"]
    if not setting:
        return ["expected a number or a list of numbers, found an empty list"]
    return [why for value in setting for why in _value_problems(value, spec)]


def _value_problems(value: Any, spec: Parameter) -> list[str]:
    if spec.kind == "switch":
        fits = isinstance(value, bool) or value in (0, 1)
        return [] if fits else [f"expected true or false, found {value!r}"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return [f"expected a number, found {value!r}"]
    if not math.isfinite(value):
        return [f"expected a finite number, found {value}"]
    if spec.kind == "whole" and not isinstance(value, int):
        return [f"expected a whole number, found {value}"]
    if spec.min is not None and value < spec.min:
        return [f"expected {spec.min:g} or more, found {value}"]
    if spec.max is not None and value > spec.max:
        return [f"expected {spec.max:g} or less, found {value}"]
    return []
