"""Which layer a tensor belongs to, by its name alone: no architecture needs to be known.

`model.layers.7.mlp.up_proj.weight` is of layer 7. The stack of layers is the prefix with the most
numbers behind it; tensors outside of it (embeddings, norms, heads) have no layer.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_NUMBERED = re.compile(r"(?P<prefix>(?:[^.]+\.)*?)(?P<number>\d+)(?P<rest>(?:\..*)?)$")


@dataclass(frozen=True, slots=True)
class Stack:
    """The layers of a model: `prefix` 0 ... `count` - 1."""

    prefix: str
    count: int

    def layer(self, name: str) -> int | None:
        """The layer of a tensor; None outside of the stack."""
        found = _NUMBERED.match(name)
        if found is None or found["prefix"] != self.prefix or not self.count:
            return None
        return int(found["number"])

    def renamed(self, name: str, layer: int) -> str:
        """The tensor's name in another layer."""
        rest = name[len(self.prefix) :].partition(".")[2]
        return f"{self.prefix}{layer}.{rest}"

    def place(self, name: str) -> float:
        """0 in the first layer, 1 in the last; 0 outside of the stack, as in mergekit."""
        layer = self.layer(name)
        return 0.0 if layer is None else place_of(layer, self.count)


def place_of(layer: int, count: int) -> float:
    """0 in the first of `count` layers, 1 in the last; 1 in a layer that is alone."""
    return 1.0 if count == 1 else layer / (count - 1)


def stack_of(names: Iterable[str]) -> Stack:
    """The stack with the most layers among a model's tensors."""
    numbers: dict[str, set[int]] = {}
    for name in names:
        found = _NUMBERED.match(name)
        if found is not None:
            numbers.setdefault(found["prefix"], set()).add(int(found["number"]))
    prefix = max(numbers, key=lambda one: (len(numbers[one]), one), default="")
    return Stack(prefix, max(numbers.get(prefix, {-1})) + 1)
