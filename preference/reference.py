"""The reference: a frozen copy of the start model, or with `reference: cached` its log-probabilities.

DPOTrainer keeps them next to the files of the pairs, under a hash of the pairs and of the model's
weights. Pairs of the cache are the same files for every run, so runs with other losses, betas or
learning rates find them there.
"""

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, PreTrainedModel

from dualign.checkpoints.context import rotary_settings, stretched_config
from dualign.data.prepare import PairData, RatedData
from dualign.distributed import run_on_main_process
from dualign.models.source import ModelSource
from dualign.preference.config import PreferenceStage
from dualign.rundir import CHECKPOINTS, complete_folder
from dualign.training.policy import load_start
from dualign.training.tiled_mlp import tile_mlps

# What changes the log-probabilities, besides the pairs and the weights: at most their rounding.
_SETTINGS = ("dtype", "quantization", "attn_implementation", "batch_tokens")
_ARGUMENTS = (
    "bf16",
    "fp16",
    "tf32",
    "ld_alpha",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "precompute_ref_batch_size",
)


def reference_copy(stage: PreferenceStage, source: ModelSource) -> PreTrainedModel | None:
    """Return the frozen copy of a start model that isn't what its name alone says; None for others.

    DPOTrainer makes its copy by the name: of the default branch, and with the positions of the files.
    """
    if stage.reference_source != "copy":
        return None
    if not (stage.context or source.revision or stage.tiled_mlp):
        return None
    model = load_start(stage, source)
    if stage.tiled_mlp:
        tile_mlps(model)  # before ZeRO-3 looks at its layers
    return model


def with_cached_reference(
    data: PairData | RatedData, stage: PreferenceStage, source: ModelSource, work: Path
) -> PairData | RatedData:
    """Return the pairs, or rated answers, as a dataset whose files every rank, and if possible every run, reads."""
    if not _is_shared(data.train, stage):
        folder = work / CHECKPOINTS
        validation = data.validation and _from_disk(data.validation, folder / "validation-pairs")
        return replace(data, train=_from_disk(data.train, folder / "pairs"), validation=validation)
    positions = _positions(stage, source)
    validation = data.validation and _named_after(data.validation, stage, positions)
    return replace(data, train=_named_after(data.train, stage, positions), validation=validation)


def _is_shared(pairs: Dataset, stage: PreferenceStage) -> bool:
    """Return whether the pairs are files of the cache, and all ranks are on this machine."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    on_one_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == world
    return stage.data.cache and bool(pairs.cache_files) and on_one_machine


def _positions(stage: PreferenceStage, source: ModelSource) -> dict[str, Any]:
    """Return the start model's rotary settings, which its weights don't show."""
    config = AutoConfig.from_pretrained(source.base, revision=source.revision).to_dict()
    if stage.context:
        config = stretched_config(config, stage.context)
    length = config.get("max_position_embeddings")
    return {"max_position_embeddings": length, **rotary_settings(config)}


def _named_after(pairs: Dataset, stage: PreferenceStage, positions: Mapping[str, Any]) -> Dataset:
    """Return the pairs under a fingerprint that also says how they are scored."""
    settings: dict[str, Any] = {name: getattr(stage, name) for name in _SETTINGS}
    settings |= {"positions": positions}
    settings |= {name: stage.train.get(name) for name in _ARGUMENTS}
    text = json.dumps([pairs._fingerprint, settings], default=str)
    named = copy.copy(pairs)
    named._fingerprint = hashlib.sha256(text.encode()).hexdigest()[:32]
    return named


def _from_disk(pairs: Dataset, folder: Path) -> Dataset:
    """Move pairs in memory into files. Otherwise they would be in a temporary folder of each rank."""

    def write() -> None:
        with complete_folder(folder, folder.with_name(f"{folder.name}.new")) as work:
            pairs.save_to_disk(work)

    run_on_main_process(lambda: None if folder.exists() else write())
    return Dataset.load_from_disk(str(folder))
