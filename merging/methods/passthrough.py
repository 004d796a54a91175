"""passthrough: one model's tensor as it is, for models put together from layers of others."""

from collections.abc import Sequence

from dualign.merging.methods.tensors import Combine, Tensors, combination


def passthrough(tensors: Tensors, *, scale: Sequence[float]) -> Combine:
    """`y = scale * x`. One input, any shape."""
    return combination(tensors, scale)
