"""Estimate what a merge reads, writes and takes, without writing it."""

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
from dualign.errors import excerpt
from dualign.merging.merge import PreparedMerge
from dualign.merging.merged import apply_method
from dualign.merging.methods.table import METHODS
from dualign.merging.methods.tensors import BLOCK, in_memory, materialize
from dualign.merging.plan import TensorPlan

_SAMPLE_BLOCKS = 4  # of random numbers, on which the method is timed
_HASHED_PER_SECOND = 1.5e9  # bytes, by one thread


def estimate(prepared: PreparedMerge, *, threads: int | None = None) -> str:
    """Return a table of bytes, files, memory and seconds.

    The seconds are extrapolated from a sample, for files in the page cache.
    """
    weights, threads = prepared.weights, threads or cpu_count()
    planned = tensor_specs(weights, prepared.merge.dtype)
    read = sum(file.stat().st_size for file in weights.files)
    written = sum(tensor.nbytes for tensor in planned)
    files = shard_names(len(split(planned, SHARD_BYTES)))
    memory = threads * BLOCK * max(map(_bytes_per_element, weights.plans.values())) / 1e6
    seconds = sum(tensor.size for tensor in planned) * seconds_per_element(prepared) / threads
    seconds += (read + written) / _HASHED_PER_SECOND / threads
    return "\n".join(
        [
            f"method    {prepared.merge.method} of {', '.join(prepared.models)}",
            f"tensors   {len(planned)}",
            f"reads     {read / 1e9:.2f} GB in {len(weights.files)} file(s)",
            f"writes    {written / 1e9:.2f} GB: {files[0]}{f' ... {files[-1]}' if files[1:] else ''}",
            f"memory    about {ceil(memory)} MB above the interpreter, with {threads} thread(s)",
            f"time      about {max(seconds, 0.1):.1f} s when the files are in the page cache",
            f"config    from {prepared.config_source}",
            f"tokenizer from {prepared.tokenizer_source}",
            *_conflict_lines(prepared),
            *(f"warning   {line}" for line in prepared.warnings),
        ]
    )


def _bytes_per_element(plan: TensorPlan) -> int:
    """Memory of one element while it is computed.

    Its sum in float64, and what is read and written; with methods that aren't elementwise, also the
    changes of all models in float64.
    """
    return 30 if METHODS[plan.method].elementwise else 70 + 15 * len(plan.inputs)


def _conflict_lines(prepared: PreparedMerge) -> list[str]:
    """List the differences between the models: what each has, and whose value is taken."""
    lines = []
    for key, values in prepared.resolved_conflicts.items():
        lines.append(f"decided   {key}: from {values['taken_from']}")
        lines += [
            f"            {excerpt(value)}  {name}"
            for name, value in values.items()
            if name != "taken_from"
        ]
    return lines or ["decided   nothing: the models agree"]


def seconds_per_element(prepared: PreparedMerge) -> float:
    """Time the method of the largest tensor on random numbers."""
    keep_freed_blocks()
    largest = max(prepared.weights.plans.values(), key=lambda plan: plan.entry.size)
    shape = (BLOCK * _SAMPLE_BLOCKS // 1024, 1024)
    values = np.random.default_rng(0).normal(0, 0.02, shape).astype(np.float32)
    stored = [from_float(values + i * 1e-3, "BF16") for i in range(len(largest.inputs) + 1)]
    best = float("inf")
    for _ in range(2):
        clock = time.perf_counter()
        arrays = [to_float32(array, "BF16") for array in stored]
        base = arrays[-1] if largest.base else None
        tensors = in_memory(arrays[:-1], base, streams=range(len(arrays)))
        from_float(materialize(apply_method(largest, tensors), shape), "BF16")
        best = min(best, time.perf_counter() - clock)
    return best / values.size
