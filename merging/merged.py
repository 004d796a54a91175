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
from dualign.merging.method_specs import METHODS
from dualign.merging.methods import FUNCTIONS, compat
from dualign.merging.methods.random import stream
from dualign.merging.methods.tensors import BLOCK, Array, Combine, Tensors, row_step
from dualign.merging.plan import Job, Models


class Merged:
    """The result of a merge, not written anywhere."""

    def __init__(
        self,
        models: Models,
        jobs: Mapping[str, Job],
        *,
        donor: Weights,
        config: Mapping[str, Any],
        seed: int,
    ) -> None:
        self.models = models
        self.jobs = jobs
        self.seed = seed
        self.folders: tuple[Path, ...] = donor.folders
        self.config = config
        self.entries: Mapping[str, Entry] = {name: job.entry for name, job in jobs.items()}
        self.files = tuple(
            dict.fromkeys(file for weights in models.values() for file in weights.files)
        )

    def reader(self, name: str) -> Reader:
        """The merged tensor. Elementwise methods start at any place; the others look first."""
        job = self.jobs[name]
        readers = [self.models[model].reader(tensor) for model, tensor in job.inputs]
        base = self.models[job.base[0]].reader(job.base[1]) if job.base else None
        tensors = Tensors(
            shape=job.entry.shape,
            inputs=tuple(one.read for one in readers),
            base=base.read if base else None,
            streams=tuple(stream(self.seed, i, name) for i in range(len(readers))),
        )
        if METHODS[job.method].by_element:
            in_parts = all(one.in_parts for one in [*readers, *([base] if base else [])])
            return Reader(combined(job, tensors), step=None, in_parts=in_parts)
        step = row_step(job.entry.shape, BLOCK)
        return Reader(_looking_first(job, tensors, step), step=step, in_parts=False)


def combined(job: Job, tensors: Tensors) -> Combine:
    """The method, with the job's parameters, on the job's tensors."""
    method = METHODS[job.method]
    arguments = {**job.each, **job.shared}
    specs = {**method.each, **method.shared}
    named = {
        specs[name].argument or name: value
        for name, value in arguments.items()
        if specs[name].argument != "-"
    }
    try:
        if job.arithmetic is not None:
            return compat.FUNCTIONS[job.method](tensors, compat.rounding(job.arithmetic), **named)
        return FUNCTIONS[job.method](tensors, **named)
    except MergeError as error:
        raise MergeError(f"{job.name}: {error}") from None


def _looking_first(job: Job, tensors: Tensors, step: int) -> Combine:
    """The method looks at its inputs when it is first asked, and is asked for whole steps."""
    made: list[Combine] = []
    lock = Lock()

    def read(start: int, stop: int) -> Array:
        with lock:
            if not made:
                made.append(combined(job, tensors))
        combine = made[0]
        if (
            start % step == 0
            and (stop % step == 0 or stop == tensors.size)
            and stop - start <= step
        ):
            return combine(start, stop)
        first = start // step * step
        parts = [combine(at, min(at + step, tensors.size)) for at in range(first, stop, step)]

        return np.concatenate(parts)[start - first : stop - first]

    return read
