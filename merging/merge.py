"""Merging: checkpoints and adapters of one architecture -> one model folder.

    dualign merge recipes/smollm3/merge.yaml
    dualign merge config.yml OUT

Weights stream through in blocks; each is computed in float64 and rounded once. The inputs are
checked against each other before the first byte is written, and some tensors are computed again
after the last.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.checkpoints.checkpoint import Weights, read_json
from dualign.checkpoints.shards import write_side_files, write_weights
from dualign.checkpoints.weights import open_weights
from dualign.errors import MergeError
from dualign.merging.config import Merge, MergeStage, merge_problems
from dualign.merging.merged import MergedWeights
from dualign.merging.methods.table import METHODS
from dualign.merging.plan import Models, merged_config, plan_tensors
from dualign.merging.provenance import (
    BackgroundHashes,
    digest_cache,
    merge_to_json,
    parameters_used,
    write_merge_json,
)
from dualign.merging.tokenizer.chat_template import template_text
from dualign.merging.tokenizer.mapping import (
    VocabularyMapping,
    map_vocabularies,
    mapping_decisions,
    mapping_record,
)
from dualign.merging.tokenizer.remapped import remap_models, require_ids, write_vocabulary
from dualign.merging.tokenizer.vocabulary import find_tokenizers
from dualign.merging.validate_inputs import ConflictPolicy, validate_inputs
from dualign.merging.validate_output import recompute_tensors, validate_output
from dualign.rundir import Outcome, write_json

# Of merge.json, also in run.json.
RUN_METRICS = ("method", "dtype", "tensors", "bytes", "models", "parameters")
RUN_CHECKS = ("verified", "decided", "config_donor")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedMerge:
    """A merge whose inputs were checked; nothing is written yet."""

    merge: Merge
    models: Models
    config_source: str
    """the model whose config.json and generation settings are taken"""
    tokenizer_source: str
    """the model whose tokenizer files are taken"""
    mapping: VocabularyMapping | None
    """None: the models have one vocabulary"""
    template: str | None
    """the chat template's text, unless it is that of the tokenizer"""
    weights: MergedWeights
    resolved_conflicts: Mapping[str, Any]
    """by key: what each model has, and whose is taken"""
    warnings: tuple[str, ...] = ()
    """what the config says without effect, a line each"""


def run(stage: MergeStage, work: Path, *, seed: int) -> Outcome:
    """Write the merged model folder into `work`. The models of `stage` are folders or hub ids.

    Raises:
        MergeError: the inputs, or their weights, can't be merged.
        CheckpointError: an input is missing or broken, or the disk is full.
    """
    problems = [
        *stage.problems(),
        *(problem for model in stage.models for problem in model.problems()),
    ]
    if problems:
        raise MergeError("\n".join(f"{stage.name}: {key}: {message}" for key, message in problems))
    record = write(prepare(stage.merge(), seed=seed), work, seed=seed)
    metrics = {key: record[key] for key in RUN_METRICS}
    return Outcome(
        metrics={**metrics, "shards": len(record["shards"])},
        checks={key: record[key] for key in RUN_CHECKS},
    )


def prepare(merge: Merge, *, seed: int) -> PreparedMerge:
    """Open the inputs, check them, and plan every tensor. Reads headers and JSON alone.

    Raises:
        MergeError, CheckpointError: see `run`.
    """
    problems = merge_problems(merge)
    if problems:
        raise MergeError("\n".join(f"{merge.location(key)}: {why}" for key, why in problems))
    warnings = list(merge.warnings)
    opened = {name: _open(merge, name, warnings, seed=seed) for name in merge.models()}
    config_source = merge.config_from or _default_config_source(merge)
    tokenizers = find_tokenizers(list(opened.values()))
    tokenizer_source = merge.tokenizer_from or config_source
    mapping = map_vocabularies(opened, tokenizers, merge, tokenizer_source)
    if mapping is not None:
        tokenizer_source = mapping.base_tokenizer
    models = remap_models(opened, mapping)
    conflicts = validate_inputs(
        models,
        tokenizers,
        _policy(merge, mapping, one_source=tokenizer_source == config_source),
        file=merge.file,
        config_source=config_source,
        tokenizer_source=tokenizer_source,
    )
    if merge.chat_template is not None and "chat_template" in conflicts:
        conflicts["chat_template"]["taken_from"] = "chat_template"
    plans, unused = plan_tensors(merge, models, config_source)
    config = merged_config(merge, models, config_source)
    require_ids(config, models[config_source].folders[0] / "config.json")
    weights = MergedWeights(
        models, plans, config_source=models[config_source], config=config, seed=seed
    )
    return PreparedMerge(
        merge=merge,
        models=models,
        config_source=config_source,
        tokenizer_source=tokenizer_source,
        mapping=mapping,
        template=template_text(merge.chat_template, list(models.values())),
        weights=weights,
        resolved_conflicts={**conflicts, **(mapping_decisions(mapping) if mapping else {})},
        warnings=(*warnings, *unused),
    )


def _open(merge: Merge, name: str, warnings: list[str], *, seed: int) -> Weights:
    """Open a model; of a merge inside of this one also add the warnings."""
    inner = merge.inner.get(name)
    if inner is None:
        return open_weights(name, allow_pickle=merge.allow_pickle)
    prepared = prepare(inner, seed=seed)
    warnings += prepared.warnings
    if prepared.mapping is not None:
        raise MergeError(
            f"{merge.file}: {name}: its models have different vocabularies, and a merge inside of "
            "another can't bring them together; write it on its own first, and merge the result"
        )
    return prepared.weights


def _default_config_source(merge: Merge) -> str:
    """Return the first model; for methods without a base, the one that base_model points at."""
    if METHODS[merge.method].base == "none" and merge.base_model:
        return merge.base_model
    return merge.slices[0].sources[0].model


def _policy(merge: Merge, mapping: VocabularyMapping | None, *, one_source: bool) -> ConflictPolicy:
    """`one_source`: config and tokenizer are taken from one model."""
    named = METHODS[merge.method].base == "none" and merge.base_model is not None
    config = merge.config_from is not None or named
    # A union may have to start from another model's tokenizer than the one whose config is taken.
    tokenizer = merge.tokenizer_from is not None or (config and one_source)
    return ConflictPolicy(
        config=config,
        tokenizer=tokenizer,
        template=tokenizer or merge.chat_template is not None,
        mapped_vocabulary=mapping is not None,
        slices=merge.slices[0].sources[0].layer_range is not None,
        keep_dtype=merge.dtype == "input",
    )


def write(
    prepared: PreparedMerge,
    work: Path,
    *,
    seed: int,
    threads: int | None = None,
    resume: bool = True,
) -> dict[str, Any]:
    """Write weights, side files and merge.json into `work`; return the content of merge.json.

    The inputs are hashed while the weights are written.
    """
    merge, weights, mapping = prepared.merge, prepared.weights, prepared.mapping
    with digest_cache() as digests, BackgroundHashes(weights.files, digests, threads) as hashes:
        shards = write_weights(weights, work, dtype=merge.dtype, threads=threads, resume=resume)
        write_beside(prepared, work)
        validate_output(work, weights, template=prepared.template, mapping=mapping)
        recomputed = recompute_tensors(work, weights, seed=seed, threads=threads)
        inputs = hashes.wait()
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
        "parameters": parameters_used(weights.plans),
        "config_donor": str(prepared.models[prepared.config_source].folders[0]),
        "tokenizer_donor": str(prepared.models[prepared.tokenizer_source].folders[0]),
        "decided": dict(prepared.resolved_conflicts),
        "warnings": list(prepared.warnings),
        "vocabulary": mapping_record(mapping) if mapping else None,
        "verified": {"tensors": list(recomputed)},
        "merge": merge_to_json(merge),
    }
    write_merge_json(work, merge, record)
    return record


def write_beside(prepared: PreparedMerge, work: Path) -> None:
    """Write config.json, tokenizer, chat template and generation settings."""
    write_side_files(
        prepared.weights,
        work,
        dtype=prepared.merge.dtype,
        tokenizer=prepared.models[prepared.tokenizer_source],
        chat_template=prepared.template,
    )
    if prepared.mapping is not None:
        source = prepared.config_source
        write_vocabulary(work, source, prepared.models[source], prepared.mapping)
    if prepared.merge.context is not None:
        _raise_text_limit(work / "tokenizer_config.json", prepared.merge.context.length)


def _raise_text_limit(file: Path, length: int) -> None:
    """Let the tokenizer's `model_max_length` be no shorter than the context."""
    settings = read_json(file) if file.is_file() else {}
    if length > settings.get("model_max_length", length):
        write_json(file, settings | {"model_max_length": length})
