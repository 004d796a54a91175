"""linear, slerp and task_arithmetic in the arithmetic of mergekit 0.1.5 (`--compat mergekit`).

linear and slerp compute in float32; task_arithmetic in the type of the tensors, where weights,
changes, products and sums are each rounded.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from dualign.checkpoints.dtypes import from_float, to_float32
from dualign.merging.methods.slerp import MIN_NORM, NEARLY_PARALLEL
from dualign.merging.methods.tensors import Array, Combine, Read, Tensors

Round = Callable[[Array], Array]
"""round to the type of the arithmetic, and return float32"""

_CHUNK = 1 << 20  # elements that mergekit's slerp sums at once


def rounding(dtype: str) -> Round:
    """Return the rounding to a stored type: F32, BF16 or F16."""
    return lambda values: to_float32(from_float(np.asarray(values), dtype), dtype)


def _linear(tensors: Tensors, cast: Round, *, weight: Sequence[float], normalize: bool) -> Combine:
    """`sum(w_i * x_i) / sum(w_i)` in float32, each product fused with its addition."""
    weights = [np.float32(w) for w in weight]
    total_weight = sum(weights, np.float32(0))

    def combine(start: int, stop: int) -> Array:
        total = np.zeros(stop - start, np.float32)
        for read, w in zip(tensors.inputs, weights, strict=True):
            # Exact in float64, so that this rounds once, as a fused multiply-add does.
            product = np.multiply(cast(read(start, stop)), w, dtype=np.float64)
            total = (product + total).astype(np.float32)
        return total / total_weight if normalize else total

    return combine


def _task_arithmetic(
    tensors: Tensors, cast: Round, *, weight: Sequence[float], normalize: bool, scale: float
) -> Combine:
    """`b + sum(w_i (x_i - b))`, rounded after every step but the additions of the sum."""
    weights = cast(np.array(weight, np.float32))
    total_weight = cast(weights.sum(keepdims=True))
    divisor = np.float32(1) if abs(total_weight[0]) < 1e-8 else total_weight[0]

    def combine(start: int, stop: int) -> Array:
        assert tensors.base is not None
        base = cast(tensors.base(start, stop))
        total = np.zeros(stop - start, np.float32)
        for read, w in zip(tensors.inputs, weights, strict=True):
            total += cast(cast(cast(read(start, stop)) - base) * w)
        total = cast(total)
        if normalize:
            total = cast(total / divisor)
        if scale != 1:
            total = cast(total * np.float32(scale))
        return cast(base + total)

    return combine


def _slerp(tensors: Tensors, cast: Round, *, t: float) -> Combine:
    """The arc from the base to the one input, in float32 throughout."""
    assert tensors.base is not None
    base, other = (_cast_reads(read, cast) for read in (tensors.base, tensors.inputs[0]))
    first, second = _slerp_factors(base, other, tensors.size, t)

    def combine(start: int, stop: int) -> Array:
        total: Array = first * base(start, stop) + second * other(start, stop)
        return total

    return combine


def _cast_reads(read: Read, cast: Round) -> Read:
    return lambda start, stop: cast(read(start, stop))


def _slerp_factors(base: Read, other: Read, size: int, t: float) -> tuple[np.float32, np.float32]:
    """Return the factors of both.

    The last bits of torch's sums, and so of these, depend on its release, on its number of threads
    and on the processor, so the sums have to be torch's own.
    """
    import torch

    def chunks(read: Read) -> Iterator[torch.Tensor]:
        for start in range(0, size, _CHUNK):
            yield torch.from_numpy(read(start, min(start + _CHUNK, size))).reshape(1, -1)

    def length(read: Read) -> torch.Tensor:
        parts = [torch.linalg.vector_norm(chunk, dim=1) for chunk in chunks(read)]
        total = torch.linalg.vector_norm(torch.stack(parts), dim=0)
        return torch.where(total > MIN_NORM, total, 1)

    lengths = length(base), length(other)
    pairs = zip(chunks(base), chunks(other), strict=True)
    products = [(a / lengths[0] * (b / lengths[1])).sum(dim=1) for a, b in pairs]
    cosine = torch.stack(products).sum(dim=0).clamp(-1, 1)
    share = torch.tensor([t])
    if float(cosine.abs()) > NEARLY_PARALLEL:
        factors = torch.cat([1 - share, share])
    else:
        theta = torch.acos(cosine)
        factors = torch.cat([torch.sin((1 - share) * theta), torch.sin(share * theta)])
        factors /= torch.sin(theta)
    first, second = factors.numpy()
    return first, second


FUNCTIONS: Mapping[str, Callable[..., Combine]] = {
    "linear": _linear,
    "slerp": _slerp,
    "task_arithmetic": _task_arithmetic,
}
