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
from dualign.checkpoints.dtypes import from_float, to_float32
from dualign.checkpoints.shards import (
    PIECE,
    cpu_count,
    progress,
    write_side_files,
    write_weights,
)
from dualign.checkpoints.weights import open_weights
from dualign.errors import MergeError
from dualign.merging.config import Merge, MergeStage, merge_problems
from dualign.merging.merged import MergedWeights
from dualign.merging.methods import METHODS
from dualign.merging.plan import Models, merged_config, plan_tensors
from dualign.merging.provenance import hashing, remembered, weights_applied, write_merge_json
from dualign.merging.serialization import to_json
from dualign.merging.tokenizer.alignment import Alignment, align, described, recorded
from dualign.merging.tokenizer.chat_template import text_of
from dualign.merging.tokenizer.remapped import realign, require_ids, write_vocabulary
from dualign.merging.tokenizer.vocabulary import find_tokenizers
from dualign.merging.validate_inputs import Choices, check
from dualign.merging.validate_output import check_written
from dualign.rundir import Outcome

VERIFIED_TENSORS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A merge whose inputs fit together; nothing is written yet."""

    merge: Merge
    models: Models
    donor: str
    tokenizer_donor: str
    alignment: Alignment | None
    """how the models were brought to one vocabulary; None: they had one"""
    template: str | None
    """the chat template's text, where it isn't that of the tokenizer"""
    weights: MergedWeights
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
        raise MergeError(
            "\n".join(f"{merge.location(key)}: {message}" for key, message in problems)
        )
    opened = {name: _open(merge, name, seed=seed) for name in merge.models()}
    donor = merge.config_from or _default_donor(merge)
    tokenizers = find_tokenizers(list(opened.values()))
    tokenizer_donor = merge.tokenizer_from or donor
    alignment = align(opened, tokenizers, merge, tokenizer_donor)
    if alignment is not None:
        tokenizer_donor = alignment.lead
    models = realign(opened, alignment)
    decided = check(
        models,
        tokenizers,
        _choices(merge, same_donor=tokenizer_donor == donor, aligned=alignment is not None),
        file=merge.file,
        donor=donor,
        tokenizer_donor=tokenizer_donor,
    )
    if merge.chat_template is not None and "chat_template" in decided:
        decided["chat_template"]["taken_from"] = "chat_template"
    plans = plan_tensors(merge, models, donor)
    config = merged_config(merge, models, donor)
    require_ids(config, models[donor].folders[0] / "config.json")
    weights = MergedWeights(models, plans, config_source=models[donor], config=config, seed=seed)
    return Prepared(
        merge=merge,
        models=models,
        donor=donor,
        tokenizer_donor=tokenizer_donor,
        alignment=alignment,
        template=text_of(merge.chat_template, list(models.values())),
        weights=weights,
        decided={**decided, **(described(alignment) if alignment else {})},
    )


def _open(merge: Merge, name: str, *, seed: int) -> Weights:
    inner = merge.inner.get(name)
    if inner is None:
        return open_weights(name, allow_pickle=merge.allow_pickle)
    prepared = prepare(inner, seed=seed)
    if prepared.alignment is not None:
        raise MergeError(
            f"{merge.file}: {name}: its models have different vocabularies, and a merge inside of "
            "another can't bring them together; write it on its own first, and merge the result"
        )
    return prepared.weights


def _default_donor(merge: Merge) -> str:
    """The first model listed; for methods without a base, the one that base_model points at."""
    if METHODS[merge.method].base == "none" and merge.base_model:
        return merge.base_model
    return merge.slices[0].sources[0].model


def _choices(merge: Merge, *, same_donor: bool, aligned: bool) -> Choices:
    named = METHODS[merge.method].base == "none" and merge.base_model is not None
    config = merge.config_from is not None or named
    # A union may have to start from another model's tokenizer than the one whose config is taken.
    tokenizer = merge.tokenizer_from is not None or (config and same_donor)
    return Choices(
        config=config,
        tokenizer=tokenizer,
        template=tokenizer or merge.chat_template is not None,
        vocabulary=aligned,
        slices=merge.slices[0].sources[0].layer_range is not None,
        one_dtype=merge.dtype == "input",
    )


def write(
    prepared: Prepared, work: Path, *, seed: int, threads: int | None = None, resume: bool = True
) -> dict[str, Any]:
    """Write weights, side files and merge.json into `work`; returns what merge.json says."""
    merge, weights = prepared.merge, prepared.weights
    with remembered() as digests, hashing(weights.files, digests, threads) as hashed:
        shards = write_weights(weights, work, dtype=merge.dtype, threads=threads, resume=resume)
        write_beside(prepared, work)
        check_written(work, weights, template=prepared.template, alignment=prepared.alignment)
        verified = recompute(work, weights, seed=seed, threads=threads)
        inputs = hashed()
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
        "parameters": weights_applied(weights.plans),
        "config_donor": str(prepared.models[prepared.donor].folders[0]),
        "tokenizer_donor": str(prepared.models[prepared.tokenizer_donor].folders[0]),
        "decided": dict(prepared.decided),
        "vocabulary": recorded(prepared.alignment) if prepared.alignment else None,
        "verified": asdict(verified),
        "merge": to_json(merge),
    }
    write_merge_json(work, merge, record)
    return record


def write_beside(prepared: Prepared, work: Path) -> None:
    """All of the model folder but the weights and merge.json: config, tokenizer, template, generation settings."""
    write_side_files(
        prepared.weights,
        work,
        dtype=prepared.merge.dtype,
        tokenizer=prepared.models[prepared.tokenizer_donor],
        chat_template=prepared.template,
    )
    if prepared.alignment is not None:
        opened = prepared.models[prepared.donor]
        write_vocabulary(work, prepared.donor, opened, prepared.alignment)


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
        ThreadPoolExecutor(threads or cpu_count()) as pool,
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
        expected = to_float32(from_float(again.read(start, stop), entry.dtype), entry.dtype)
        if not np.array_equal(expected, there.read(start, stop)):
            raise MergeError(
                f"{written.folder}: {name} reads back differently from what the inputs give, from "
                f"element {start} on; check the disk, and merge again"
            )
        advance((stop - start) * (entry.nbytes // entry.size))
