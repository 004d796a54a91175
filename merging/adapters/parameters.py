"""The parameters of a method on adapters: one number for all of them, or one for each."""

from collections.abc import Mapping, Sequence
from typing import Any

from dualign.config import nearest
from dualign.errors import ConfigError
from dualign.merging.method_specs import METHODS
from dualign.merging.parameters import problems

LINEAR = "linear"
# task_arithmetic of changes is their weighted sum: linear.
METHODS_ON_CHANGES = tuple(
    name
    for name, method in METHODS.items()
    if method.base == "required" and method.most is None and name != "task_arithmetic"
)


def arguments_of(
    method: str,
    given: Mapping[str, Sequence[float]],
    *,
    weights: Sequence[float] | None,
    count: int,
) -> dict[str, Any]:
    """What the method's function takes, defaults filled in, for `count` adapters.

    Raises:
        ConfigError: the method is unknown, or a parameter isn't one that it takes.
    """
    if method not in METHODS_ON_CHANGES:
        raise ConfigError(f"method {method!r}{nearest(method, [LINEAR, *METHODS_ON_CHANGES])}")
    known = METHODS[method]
    if count < known.fewest:
        raise ConfigError(f"{method}: expected {known.fewest} adapters or more, found {count}")
    if "weight" in known.each:
        given = {"weight": weights or [1 / count] * count, **given}
    elif weights:
        raise ConfigError(f"{method}: takes no weights; leave --weights out")
    for name, values in given.items():
        _check(method, name, values, count)
    arguments: dict[str, Any] = {}
    for name, spec in {**known.each, **known.shared}.items():
        values = list(given.get(name, [spec.default]))  # type: ignore[list-item]
        if name in known.each and len(values) == 1:
            values *= count
        if spec.argument != "-":
            arguments[spec.argument or name] = values if name in known.each else values[0]
    return arguments


def _check(method: str, name: str, values: Sequence[float], count: int) -> None:
    known = METHODS[method]
    expected = {1, count} if name in known.each else {1}
    if name in {**known.each, **known.shared} and len(values) not in expected:
        raise ConfigError(
            f"{method}: {name} has {len(values)} values; expected {' or '.join(map(str, sorted(expected)))}"
        )
    for value in values:
        for _, why in problems(method, {name: value}, of_model=False):
            raise ConfigError(f"{method}: {name}: {why}")
