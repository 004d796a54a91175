"""Infer a tensor's layer from its name, for any architecture.

`model.layers.7.mlp.up_proj.weight` is in layer 7. The stack of layers is the prefix that is
followed by the most numbers; tensors outside of it (embeddings, norms, heads) have no layer.
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
        """Return the layer of a tensor; None outside of the stack."""
        match = _NUMBERED.match(name)
        if match is None or match["prefix"] != self.prefix or not self.count:
            return None
        return int(match["number"])

    def renamed(self, name: str, layer: int) -> str:
        """Return the tensor's name in another layer."""
        rest = name[len(self.prefix) :].partition(".")[2]
        return f"{self.prefix}{layer}.{rest}"

    def position(self, name: str) -> float:
        """Return 0 in the first layer, 1 in the last; 0 outside of the stack, as in mergekit."""
        layer = self.layer(name)
        return 0.0 if layer is None else layer_position(layer, self.count)


def layer_position(layer: int, count: int) -> float:
    """Return 0 in the first of `count` layers, 1 in the last; 1 in a single layer."""
    return 1.0 if count == 1 else layer / (count - 1)


def find_stack(names: Iterable[str]) -> Stack:
    """Find the stack with the most layers among a model's tensors."""
    numbers: dict[str, set[int]] = {}
    for name in names:
        match = _NUMBERED.match(name)
        if match is not None:
            numbers.setdefault(match["prefix"], set()).add(int(match["number"]))
    prefix = max(numbers, key=lambda prefix: (len(numbers[prefix]), prefix), default="")
    return Stack(prefix, max(numbers.get(prefix, {-1})) + 1)
