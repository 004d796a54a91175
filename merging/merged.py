"""A merge as weights: its tensors are computed as they are read, so merges nest without a copy.

A soup inside of another merge is read block by block like any model, in float64 and unrounded.
"""

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from dualign.checkpoints.checkpoint import Reader, Weights
from dualign.checkpoints.header import Entry
from dualign.errors import MergeError
from dualign.merging.methods import compat
from dualign.merging.methods.random import stream
from dualign.merging.methods.table import METHODS
from dualign.merging.methods.tensors import BLOCK, Array, Combine, Tensors, row_step
from dualign.merging.plan import Models, TensorPlan


class MergedWeights:
    """The result of a merge, computed on read."""

    def __init__(
        self,
        models: Models,
        plans: Mapping[str, TensorPlan],
        *,
        config_source: Weights,
        config: Mapping[str, Any],
        seed: int,
    ) -> None:
        self.models = models
        self.plans = plans
        self.seed = seed
        self.folders: tuple[Path, ...] = config_source.folders
        self.config = config
        self.entries: Mapping[str, Entry] = {name: plan.entry for name, plan in plans.items()}
        self.files = tuple(
            dict.fromkeys(file for weights in models.values() for file in weights.files)
        )

    def reader(self, name: str) -> Reader:
        """Return a reader of the merged tensor.

        Elementwise methods start at any element. Others read the whole inputs first, when a range
        of the result is first read.
        """
        plan = self.plans[name]
        readers = [self.models[model].reader(tensor) for model, tensor in plan.inputs]
        base = self.models[plan.base[0]].reader(plan.base[1]) if plan.base else None
        tensors = Tensors(
            shape=plan.entry.shape,
            inputs=tuple(reader.read for reader in readers),
            base=base.read if base else None,
            streams=tuple(stream(self.seed, i, name) for i in range(len(readers))),
        )
        if METHODS[plan.method].elementwise:
            random_access = all(
                reader.random_access for reader in [*readers, *([base] if base else [])]
            )
            return Reader(apply_method(plan, tensors), step=None, random_access=random_access)
        step = row_step(plan.entry.shape, BLOCK)
        return Reader(_lazy_read(plan, tensors, step), step=step, random_access=False)


def apply_method(plan: TensorPlan, tensors: Tensors) -> Combine:
    """Run the plan's method on its tensors, with its parameters."""
    method = METHODS[plan.method]
    arguments = method.arguments({**plan.per_model, **plan.global_}, len(plan.inputs))
    try:
        if plan.arithmetic is not None:
            cast = compat.rounding(plan.arithmetic)
            return compat.FUNCTIONS[plan.method](tensors, cast, **arguments)
        combine: Combine = method.function(tensors, **arguments)
        return combine
    except MergeError as error:
        raise MergeError(f"{plan.name}: {error}") from None


def _lazy_read(plan: TensorPlan, tensors: Tensors, step: int) -> Combine:
    """Run the method on the first read; compute whole steps, and cut the range out of them."""
    combines: list[Combine] = []
    lock = Lock()

    def read(start: int, stop: int) -> Array:
        with lock:
            if not combines:
                combines.append(apply_method(plan, tensors))
        combine = combines[0]
        at_end = stop % step == 0 or stop == tensors.size
        if start % step == 0 and at_end and stop - start <= step:
            return combine(start, stop)
        first = start // step * step
        parts = [combine(at, min(at + step, tensors.size)) for at in range(first, stop, step)]
        return np.concatenate(parts)[start - first : stop - first]

    return read
