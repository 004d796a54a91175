"""nearswap: the second model where it is near the base, the base where it is far."""

import numpy as np

from dualign.merging.methods.tensors import Array, Combine, Tensors

_MIN_DISTANCE = 1e-6


def nearswap(tensors: Tensors, *, t: float) -> Combine:
    """`y = w x + (1 - w) b`, `w = clip(t / |b - x|, 0, 1)`. One input and the base; any shape."""

    def combine(start: int, stop: int) -> Array:
        assert tensors.base is not None
        delta = tensors.delta(0, start, stop)
        share = np.clip(t / np.maximum(np.abs(delta), _MIN_DISTANCE), 0, 1)
        return tensors.base(start, stop) + share * delta

    return combine
