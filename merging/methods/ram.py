"""ram, ramplus_tl: keep what one agent alone learned, average what several did (arXiv 2601.13572).

Fine-tunes by reinforcement learning change few weights, each others. A mean over all models would
shrink a change that only one of them made; here each element is divided by the number of models
that changed it.
"""

from collections.abc import Sequence

import numpy as np

from dualign.merging.methods.tensors import Array, Combine, Tensors


def ram(tensors: Tensors, *, epsilon: float) -> Combine:
    """`y = b + sum(z_i d_i) / n`, `d_i = x_i - b`, `z_i = [|d_i| > epsilon]`, `n = sum(z_i)`.

    Any shape, any number of inputs.
    """
    return _sum(tensors, epsilon, [1.0] * len(tensors.inputs))


def ramplus_tl(tensors: Tensors, *, r: float, alpha: float, epsilon: float) -> Combine:
    """The same, with a change that is the model's alone times `1 + r * clip(s_i / u_i, 0, alpha)`.

    s_i and u_i count the elements of this tensor that model i changed with others and alone: what
    is lost of a model in its shared elements is given back in its own.
    """
    shared, alone = np.zeros((2, len(tensors.inputs)))
    for start, stop in tensors.ranges():
        changed, count = _changed(tensors.deltas(start, stop), epsilon)
        shared += [np.count_nonzero(mask & (count > 1)) for mask in changed]
        alone += [np.count_nonzero(mask & (count == 1)) for mask in changed]
    ratios = np.divide(shared, alone, out=np.where(shared > 0, np.inf, 0.0), where=alone > 0)
    return _sum(tensors, epsilon, (1 + r * np.clip(ratios, 0, alpha)).tolist())


def _sum(tensors: Tensors, epsilon: float, gains: Sequence[float]) -> Combine:
    """Return the sum of changes; those of one model alone are multiplied by its gain."""

    def combine(start: int, stop: int) -> Array:
        deltas = tensors.deltas(start, stop)
        changed, count = _changed(deltas, epsilon)
        total = np.zeros(stop - start)
        for delta, mask, gain in zip(deltas, changed, gains, strict=True):
            delta *= mask
            if gain != 1:
                delta *= np.where(count == 1, gain, 1.0)
            total += delta
        total /= np.maximum(count, 1)
        assert tensors.base is not None
        total += tensors.base(start, stop)
        return total

    return combine


def _changed(deltas: Sequence[Array], epsilon: float) -> tuple[list[Array], Array]:
    """Return which elements each model changed, and how many models changed each element."""
    masks = [np.abs(delta) > epsilon for delta in deltas]
    return masks, np.sum(masks, axis=0)
