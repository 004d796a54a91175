"""Merging: checkpoints and adapters of one architecture -> one model folder.

    dualign merge recipes/smollm3/merge.yaml
    dualign merge config.yml OUT

Weights stream through in blocks: each is computed in float64 and rounded once. What must agree
between the inputs is checked before the first byte is written, and some tensors are computed again
after the last.
"""

import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dualign.checkpoints.checkpoint import Checkpoint, Weights
from dualign.checkpoints.numbers import narrow, widen
from dualign.checkpoints.shards import (
    PIECE,
    processors,
    progress,
    write_side_files,
    write_weights,
)
from dualign.checkpoints.weights import open_weights
from dualign.errors import MergeError
from dualign.merging.catalogue import METHODS
from dualign.merging.config import Merge, MergeStage, merge_problems
from dualign.merging.merged import Merged
from dualign.merging.plan import Models, config_of, plan
from dualign.merging.preflight import Choices, check
from dualign.merging.provenance import hashes, remembered, weights_applied, write_merge_json
from dualign.merging.record import to_json
from dualign.rundir import Outcome

VERIFIED_TENSORS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A merge whose inputs fit together; nothing is written yet."""

    merge: Merge
    models: Models
    donor: str
    tokenizer_donor: str
    weights: Merged
    decided: Mapping[str, Any]
    """what differs between the inputs, and whose value was taken"""


def run(stage: MergeStage, work: Path, *, seed: int) -> Outcome:
    """Write the merged model folder into `work`. The models of `stage` are folders or hub ids.

    Raises:
        MergeError: the inputs, or their weights, can't be merged.
        CheckpointError: an input is missing or broken, or the disk is full.
    """
    problems = [*stage.problems(), *(problem for one in stage.models for problem in one.problems())]
    if problems:
        raise MergeError("\n".join(f"{stage.name}: {key}: {message}" for key, message in problems))
    prepared = prepare(stage.merge(), seed=seed)
    record = write(prepared, work, seed=seed)
    kept = ("method", "dtype", "tensors", "bytes", "models", "parameters")
    return Outcome(
        metrics={**{key: record[key] for key in kept}, "shards": len(record["shards"])},
        checks={key: record[key] for key in ("verified", "decided", "config_donor")},
    )


def prepare(merge: Merge, *, seed: int) -> Prepared:
    """Open the inputs, check that they fit, and plan every tensor. Reads headers and JSON alone.

    Raises:
        MergeError, CheckpointError: see `run`.
    """
    problems = merge_problems(merge)
    if problems:
        raise MergeError("\n".join(f"{merge.where(key)}: {message}" for key, message in problems))
    models: dict[str, Weights] = {}
    for name in merge.models():
        inner = merge.inner.get(name)
        models[name] = prepare(inner, seed=seed).weights if inner else open_weights(name)
    donor = merge.config_from or _default_donor(merge)
    tokenizer_donor = merge.tokenizer_from or donor
    decided = check(models, merge, _choices(merge), donor=donor)
    jobs = plan(merge, models, donor)
    config = config_of(merge, models, donor)
    weights = Merged(models, jobs, donor=models[donor], config=config, seed=seed)
    return Prepared(
        merge=merge,
        models=models,
        donor=donor,
        tokenizer_donor=tokenizer_donor,
        weights=weights,
        decided=decided,
    )


def _default_donor(merge: Merge) -> str:
    """The first model listed; for methods without a base, the one that base_model points at."""
    if METHODS[merge.method].base == "none" and merge.base_model:
        return merge.base_model
    return merge.slices[0].sources[0].model


def _choices(merge: Merge) -> Choices:
    named = METHODS[merge.method].base == "none" and merge.base_model is not None
    config = merge.config_from is not None or named
    return Choices(
        config=config,
        tokenizer=config or merge.tokenizer_from is not None,
        template=config or merge.tokenizer_from is not None or merge.chat_template is not None,
        slices=merge.slices[0].sources[0].layer_range is not None,
        one_dtype=merge.dtype == "input",
    )


def write(
    prepared: Prepared, work: Path, *, seed: int, threads: int | None = None, resume: bool = True
) -> dict[str, Any]:
    """Write weights, side files and merge.json into `work`; returns what merge.json says."""
    merge, weights = prepared.merge, prepared.weights
    shards = write_weights(weights, work, dtype=merge.dtype, threads=threads, resume=resume)
    write_side_files(
        weights,
        work,
        dtype=merge.dtype,
        tokenizer=prepared.models[prepared.tokenizer_donor],
        chat_template=merge.chat_template,
    )
    verified = recompute(work, weights, seed=seed, threads=threads)
    with remembered() as digests:
        inputs = hashes(weights.files, digests, threads)
    record: dict[str, Any] = {
        "method": merge.method,
        "dtype": merge.dtype,
        "seed": seed,
        "tensors": len(weights.entries),
        "bytes": sum(file.stat().st_size for file in shards),
        "shards": {file.name: digest for file, digest in shards.items()},
        "models": [
            {
                "model": name,
                "folders": [str(folder) for folder in model.folders],
                "sha256": {str(file): inputs[file] for file in model.files},
            }
            for name, model in prepared.models.items()
        ],
        "parameters": weights_applied(weights.jobs),
        "config_donor": str(prepared.models[prepared.donor].folders[0]),
        "tokenizer_donor": str(prepared.models[prepared.tokenizer_donor].folders[0]),
        "decided": dict(prepared.decided),
        "verified": asdict(verified),
        "merge": to_json(merge),
    }
    write_merge_json(work, merge, record)
    return record


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """Tensors read back and compared with what the inputs give."""

    tensors: tuple[str, ...]


def recompute(
    out: Path,
    weights: Weights,
    *,
    seed: int,
    count: int = VERIFIED_TENSORS,
    threads: int | None = None,
) -> Verified:
    """Compute `count` tensors of `out`, drawn by `seed`, again; the bytes must be the same.

    Raises:
        MergeError: they aren't.
    """
    written = Checkpoint(out)
    names = sorted(written.entries)
    drawn = tuple(random.Random(seed).sample(names, min(count, len(names))))
    total = sum(written.entries[name].nbytes for name in drawn)
    with (
        ThreadPoolExecutor(threads or processors()) as pool,
        progress(total, "computing again") as bar,
    ):
        for _ in pool.map(lambda name: _require_same(written, weights, name, bar.update), drawn):
            pass
    return Verified(tensors=drawn)


def _require_same(
    written: Checkpoint, weights: Weights, name: str, advance: Callable[[int], object]
) -> None:
    entry = written.entries[name]
    again, there = weights.reader(name), written.reader(name)
    step = again.step or PIECE
    for start in range(0, entry.size, step):
        stop = min(start + step, entry.size)
        expected = widen(narrow(again.read(start, stop), entry.dtype), entry.dtype)
        if not np.array_equal(expected, there.read(start, stop)):
            raise MergeError(
                f"{written.folder}: {name} reads back differently from what the inputs give, from "
                f"element {start} on; check the disk, and merge again"
            )
        advance((stop - start) * (entry.nbytes // entry.size))
