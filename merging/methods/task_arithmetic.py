"""task_arithmetic: add up what fine-tunes changed (arXiv 2212.04089)."""

from collections.abc import Sequence

from dualign.merging.methods.task import task_sum
from dualign.merging.methods.tensors import Combine, Tensors


def task_arithmetic(
    tensors: Tensors, *, weight: Sequence[float], normalize: bool = False, scale: float = 1.0
) -> Combine:
    """`y = b + scale * sum(w_i (x_i - b))`. Any number of inputs and a base; any shape."""
    return task_sum(tensors, weight=weight, normalize=normalize, scale=scale)
