"""linear, slerp and task_arithmetic with mergekit's arithmetic, for those who must have its numbers.

As mergekit 0.1.5 computes: linear and slerp in float32, task_arithmetic in the type of the tensors,
where weights, changes, products and sums are each rounded.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from dualign.checkpoints.dtypes import narrow, widen
from dualign.merging.methods.slerp import LEAST_NORM, NEARLY_PARALLEL
from dualign.merging.methods.tensors import Array, Combine, Read, Tensors

Round = Callable[[Array], Array]
"""to the type of the arithmetic and back to float32"""

_CHUNK = 1 << 20  # elements that mergekit's slerp sums at once


def rounding(dtype: str) -> Round:
    """Rounding to a stored type: F32, BF16 or F16."""
    return lambda values: widen(narrow(np.asarray(values), dtype), dtype)


def linear(
    tensors: Tensors, rounded: Round, *, weight: Sequence[float], normalize: bool = True
) -> Combine:
    """`sum(w_i * x_i) / sum(w_i)`, each product fused with its addition, in float32."""
    weights = [np.float32(one) for one in weight]
    total = np.float32(0)
    for one in weights:
        total += one

    def combine(start: int, stop: int) -> Array:
        result = np.zeros(stop - start, np.float32)
        for read, one in zip(tensors.inputs, weights, strict=True):
            # Exact in float64, so that this rounds once, as a fused multiply-add does.
            product = np.multiply(rounded(read(start, stop)), one, dtype=np.float64)
            result = (product + result).astype(np.float32)
        return result / total if normalize else result

    return combine


def slerp(tensors: Tensors, rounded: Round, *, t: float) -> Combine:
    """The arc, in float32 throughout."""
    assert tensors.base is not None
    base, other = _rounded(tensors.base, rounded), _rounded(tensors.inputs[0], rounded)
    first, second = _coefficients(base, other, tensors.size, t)

    def combine(start: int, stop: int) -> Array:
        total: Array = first * base(start, stop) + second * other(start, stop)
        return total

    return combine


def task_arithmetic(
    tensors: Tensors,
    rounded: Round,
    *,
    weight: Sequence[float],
    normalize: bool = False,
    scale: float = 1.0,
) -> Combine:
    """`b + sum(w_i (x_i - b))`, rounded after every step but the additions of the sum."""
    weights = rounded(np.array(weight, np.float32))
    total_weight = rounded(weights.sum(keepdims=True))
    divisor = np.float32(1) if abs(total_weight[0]) < 1e-8 else total_weight[0]

    def combine(start: int, stop: int) -> Array:
        assert tensors.base is not None
        base = rounded(tensors.base(start, stop))
        total = np.zeros(stop - start, np.float32)
        for read, one in zip(tensors.inputs, weights, strict=True):
            total += rounded(rounded(rounded(read(start, stop)) - base) * one)
        total = rounded(total)
        if normalize:
            total = rounded(total / divisor)
        if scale != 1:
            total = rounded(total * np.float32(scale))
        return rounded(base + total)

    return combine


FUNCTIONS: Mapping[str, Callable[..., Combine]] = {
    "linear": linear,
    "slerp": slerp,
    "task_arithmetic": task_arithmetic,
}


def _rounded(read: Read, rounded: Round) -> Read:
    return lambda start, stop: rounded(read(start, stop))


def _coefficients(base: Read, other: Read, size: int, t: float) -> tuple[np.float32, np.float32]:
    """The factors of both. The last bits of torch's sums, and so of these, depend on its release, on
    its number of threads and on the processor, so the sums have to be torch's own.
    """
    import torch

    def chunks(read: Read) -> Iterator[torch.Tensor]:
        for start in range(0, size, _CHUNK):
            yield torch.from_numpy(read(start, min(start + _CHUNK, size))).reshape(1, -1)

    def length(read: Read) -> torch.Tensor:
        parts = [torch.linalg.vector_norm(one, dim=1) for one in chunks(read)]
        whole = torch.linalg.vector_norm(torch.stack(parts), dim=0)
        return torch.where(whole > LEAST_NORM, whole, 1)

    lengths = length(base), length(other)
    parts = [
        (a / lengths[0] * (b / lengths[1])).sum(dim=1)
        for a, b in zip(chunks(base), chunks(other), strict=True)
    ]
    cosine = torch.stack(parts).sum(dim=0).clamp(-1, 1)
    share = torch.tensor([t])
    if float(cosine.abs()) > NEARLY_PARALLEL:
        factors = torch.cat([1 - share, share])
    else:
        theta = torch.acos(cosine)
        factors = torch.cat([torch.sin((1 - share) * theta), torch.sin(share * theta)])
        factors /= torch.sin(theta)
    first, second = factors.numpy()
    return first, second
