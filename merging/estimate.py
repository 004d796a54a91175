"""What a merge will read, write and take, without doing it."""

import time
from math import ceil

import numpy as np

from dualign.checkpoints.dtypes import from_float, to_float32
from dualign.checkpoints.shards import (
    SHARD_BYTES,
    cpu_count,
    keep_freed_blocks,
    shard_names,
    split,
    tensor_specs,
)
from dualign.merging.merge import Prepared
from dualign.merging.merged import apply_method
from dualign.merging.methods import METHODS
from dualign.merging.methods.tensors import BLOCK, in_memory, materialize
from dualign.merging.plan import TensorPlan

_SAMPLE = 4  # blocks of made numbers that the method is timed on
_HASHED = 1.5e9  # bytes a second and thread


def estimate(prepared: Prepared, *, threads: int | None = None) -> str:
    """A table of bytes, files, memory and seconds; the seconds from a sample, on warm files."""
    weights, threads = prepared.weights, threads or cpu_count()
    planned = tensor_specs(weights, prepared.merge.dtype)
    read = sum(file.stat().st_size for file in weights.files)
    written = sum(one.nbytes for one in planned)
    files = shard_names(len(split(planned, SHARD_BYTES)))
    memory = threads * BLOCK * max(map(_bytes_each, weights.plans.values())) / 1e6
    seconds = sum(one.size for one in planned) * seconds_each(prepared) / threads
    seconds += (read + written) / _HASHED / threads
    return "\n".join(
        [
            f"method    {prepared.merge.method} of {', '.join(prepared.models)}",
            f"tensors   {len(planned)}",
            f"reads     {read / 1e9:.2f} GB in {len(weights.files)} file(s)",
            f"writes    {written / 1e9:.2f} GB: {files[0]}{f' ... {files[-1]}' if files[1:] else ''}",
            f"memory    about {ceil(memory)} MB above the interpreter, with {threads} thread(s)",
            f"time      about {max(seconds, 0.1):.1f} s when the files are in the page cache",
            f"config    from {prepared.donor}",
            f"tokenizer from {prepared.tokenizer_donor}",
            *_decisions(prepared),
        ]
    )


def _bytes_each(job: TensorPlan) -> int:
    """Of one element while it is made: its sum in float64, and what is read and written; with methods
    that look first, the changes of all models in float64 too.
    """
    return 30 if METHODS[job.method].elementwise else 70 + 15 * len(job.inputs)


def _decisions(prepared: Prepared) -> list[str]:
    """What differs between the models, what each has, and whose value is taken."""
    lines = []
    for key, one in prepared.decided.items():
        lines.append(f"decided   {key}: from {one['taken_from']}")
        shown = [(name, value) for name, value in one.items() if name != "taken_from"]
        lines += [f"            {_short(value)}  {name}" for name, value in shown]
    return lines or ["decided   nothing: the models agree"]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def seconds_each(prepared: Prepared) -> float:
    """For one element, by the method of a large tensor on made numbers."""
    keep_freed_blocks()
    job = max(prepared.weights.plans.values(), key=lambda one: one.entry.size)
    shape = (BLOCK * _SAMPLE // 1024, 1024)
    made = np.random.default_rng(0).normal(0, 0.02, shape).astype(np.float32)
    stored = [from_float(made + i * 1e-3, "BF16") for i in range(len(job.inputs) + 1)]
    best = float("inf")
    for _ in range(2):
        clock = time.perf_counter()
        arrays = [to_float32(one, "BF16") for one in stored]
        tensors = in_memory(
            arrays[:-1], arrays[-1] if job.base else None, streams=range(len(arrays))
        )
        from_float(materialize(apply_method(job, tensors), shape), "BF16")
        best = min(best, time.perf_counter() - clock)
    return best / made.size
