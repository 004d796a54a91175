"""The parameters of a method on adapters: one number for all of them, or one for each."""

from collections.abc import Mapping, Sequence
from typing import Any

from dualign.config import nearest
from dualign.errors import ConfigError
from dualign.merging.methods.table import METHODS
from dualign.merging.parameters import parameter_problems

LINEAR = "linear"
# task_arithmetic of changes is their weighted sum: linear.
_METHODS_ON_CHANGES = tuple(
    name
    for name, method in METHODS.items()
    if method.base == "required" and method.max_models is None and name != "task_arithmetic"
)


def method_arguments(
    name: str,
    parameters: Mapping[str, Sequence[float]],
    *,
    weights: Sequence[float] | None,
    count: int,
) -> dict[str, Any]:
    """Return the arguments of the method's function for `count` adapters, with defaults.

    Raises:
        ConfigError: the method is unknown, or doesn't take a parameter.
    """
    if name not in _METHODS_ON_CHANGES:
        raise ConfigError(f"method {name!r}{nearest(name, [LINEAR, *_METHODS_ON_CHANGES])}")
    method = METHODS[name]
    if count < method.min_models:
        raise ConfigError(f"{name}: expected {method.min_models} adapters or more, found {count}")
    if "weight" in method.per_model:
        parameters = {"weight": weights or [1 / count] * count, **parameters}
    elif weights:
        raise ConfigError(f"{name}: takes no weights; leave --weights out")
    arguments: dict[str, Any] = {}
    for parameter, values in parameters.items():
        lengths = [1, count] if parameter in method.per_model and count > 1 else [1]
        if parameter in method.parameters and len(values) not in lengths:
            raise ConfigError(
                f"{name}: {parameter} has {len(values)} values; expected "
                f"{' or '.join(map(str, lengths))}"
            )
        for value in values:
            for _, why in parameter_problems(name, {parameter: value}, of_model=False):
                raise ConfigError(f"{name}: {parameter}: {why}")
        each = list(values) if len(values) == count else list(values) * count
        arguments[parameter] = each if parameter in method.per_model else values[0]
    return method.arguments(arguments, count)
