"""A method's parameters, as configs give them: numbers, gradients over layers, filters by tensor.

    weight: 0.5                                    for every tensor
    weight: [0, 0.5, 1]                            from the first layer to the last, in straight lines
    weight: [{filter: mlp, value: 0.3}, {value: 0.5}]    the first entry whose filter fits

A filter is a part of the tensor's name; `*`, or none, fits every tensor. The value of an entry may
be a gradient. What no entry fits is looked up at the next level: model, slice, whole config.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dualign.config import Key, dotted, nearest
from dualign.errors import MergeError
from dualign.merging.method_specs import METHODS, Parameter

Value = float | bool


@dataclass(frozen=True, slots=True)
class Level:
    """The parameters given at one place of a config."""

    key: Key
    values: Mapping[str, Any]


@dataclass(slots=True)
class Resolver:
    """Looks parameters up, and remembers which of those given were of use."""

    used: set[Key] = field(default_factory=set)

    def value(
        self, name: str, spec: Parameter, levels: Sequence[Level], *, tensor: str, place: float
    ) -> Value:
        """The parameter for a tensor whose layer lies at `place`, 0 first to 1 last.

        Raises:
            MergeError: it isn't given anywhere, and has no default.
        """
        for level in levels:
            if name in level.values:
                found = _fitting(level.values[name], tensor)
                if found is not None:
                    entry, setting = found
                    self.used.add((*level.key, name, *entry))
                    return at(setting, place)
        if spec.default is None:
            where = " or ".join(dotted(level.key) for level in levels if level.key)
            raise MergeError(f"{tensor}: no {name} is given for it; set {name} in {where}")
        return spec.default

    def unused(self, levels: Sequence[Level]) -> list[Key]:
        """Parameters that no tensor got."""
        given = [key for level in levels for key in _entries(level)]
        return [key for key in dict.fromkeys(given) if key not in self.used]


def at(setting: Any, place: float) -> Value:
    """A number, or a gradient's value at `place`."""
    if not isinstance(setting, list):
        return setting  # type: ignore[no-any-return]  # checked by `problems`
    scaled = place * (len(setting) - 1)
    low = min(math.floor(scaled), len(setting) - 1)
    high = min(low + 1, len(setting) - 1)
    return float(setting[low] + (setting[high] - setting[low]) * (scaled - low))


def _fitting(setting: Any, tensor: str) -> tuple[Key, Any] | None:
    """The entry that fits the tensor, and its number or gradient."""
    if not _has_filters(setting):
        return (), setting
    for i, entry in enumerate(setting):
        filter_ = entry.get("filter")
        if filter_ in (None, "*") or filter_ in tensor:
            return (i,), entry["value"]
    return None


def _has_filters(setting: Any) -> bool:
    return isinstance(setting, list) and any(isinstance(one, dict) for one in setting)


def _entries(level: Level) -> Iterator[Key]:
    for name, setting in level.values.items():
        if _has_filters(setting):
            yield from ((*level.key, name, i) for i in range(len(setting)))
        else:
            yield (*level.key, name)


def problems(method: str, values: Mapping[str, Any], *, of_model: bool) -> list[tuple[Key, str]]:
    """What is wrong with the parameters at one place, by key."""
    known = METHODS[method]
    fitting = known.each if of_model else {**known.each, **known.shared}
    found: list[tuple[Key, str]] = []
    for name, setting in values.items():
        if name in fitting:
            found += [((name, *key), why) for key, why in _wrong(setting, fitting[name])]
        elif name in known.shared:
            found.append(
                ((name,), f"{name} has one value for all models: set it in the outer parameters")
            )
        else:
            hint = nearest(name, list(fitting)) if fitting else " (it takes none)"
            found.append(((name,), f"{method} has no such parameter{hint}"))
    return found


def _wrong(setting: Any, spec: Parameter) -> list[tuple[Key, str]]:
    if isinstance(setting, dict):
        return [((), "an entry with a filter has to be in a list: [{filter: ..., value: ...}]")]
    if not _has_filters(setting):
        return [((), why) for why in _wrong_setting(setting, spec)]
    found: list[tuple[Key, str]] = []
    for i, entry in enumerate(setting):
        if not isinstance(entry, dict) or "value" not in entry:
            found.append(((i,), "expected {filter: part of a name, value: ...}"))
            continue
        found += [
            ((i, key), f"unknown key{nearest(key, ['filter', 'value'])}")
            for key in entry
            if key not in ("filter", "value")
        ]
        if not isinstance(entry.get("filter", ""), str | None):
            found.append(((i, "filter"), "expected a part of a tensor's name"))
        found += [((i, "value"), why) for why in _wrong_setting(entry["value"], spec)]
        if entry.get("filter") in (None, "*") and i + 1 < len(setting):
            found.append(((i + 1,), "has no effect: the entry before it fits every tensor"))
            break
    return found


def _wrong_setting(setting: Any, spec: Parameter) -> list[str]:
    if isinstance(setting, list):
        if spec.kind != "number":
            return ["a gradient needs a parameter that is a number"]
        if not setting:
            return ["expected a number or a list of numbers, found an empty list"]
        return [why for one in setting for why in _wrong_value(one, spec)]
    return _wrong_value(setting, spec)


def _wrong_value(value: Any, spec: Parameter) -> list[str]:
    if spec.kind == "switch":
        fits = isinstance(value, bool) or value in (0, 1)
        return [] if fits else [f"expected true or false, found {value!r}"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return [f"expected a number, found {value!r}"]
    if not math.isfinite(value):
        return [f"expected a finite number, found {value}"]
    if spec.kind == "whole" and not isinstance(value, int):
        return [f"expected a whole number, found {value}"]
    if spec.least is not None and value < spec.least:
        return [f"expected {spec.least:g} or more, found {value}"]
    if spec.most is not None and value > spec.most:
        return [f"expected {spec.most:g} or less, found {value}"]
    return []
