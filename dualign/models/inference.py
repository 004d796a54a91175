"""A model as its users load it: folder, adapter, embedded or hub id -> weights, tokenizer."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights

from dualign.errors import CheckpointError
from dualign.models.loading import load_checkpoint
from dualign.models.source import resolve_model
from dualign.rundir import read_run

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A model that can be asked: a checkpoint, or a live one whose weights somebody sets."""

    model: str
    """what it is called in tables"""
    identity: str
    """changes when the weights do"""
    tokenizer: PreTrainedTokenizerBase
    weights: Callable[[], PreTrainedModel]
    """called when the weights are needed, which may be never"""


def open_model(reference: str, *, dtype: str = "auto") -> Subject:
    """A checkpoint; its weights are loaded once, when they are first needed."""
    return Subject(
        model=reference,
        identity=identity(reference),
        tokenizer=load_chat_tokenizer(reference),
        weights=cache(lambda: load_model(reference, dtype=dtype)),
    )


def load_model(reference: str, *, dtype: str = "auto") -> PreTrainedModel:
    """The weights, on the accelerator if there is one; an adapter is put on its base.

    Args:
        dtype: `auto` is the checkpoint's own on an accelerator and float32 on a CPU, where bfloat16
            is slow.
    """
    model = load_checkpoint(reference, dtype=_resolved(dtype))
    # In 16 bits, folding would round part of the adapter away: there it stays beside the weights.
    if resolve_model(reference).adapter is not None and model.dtype == torch.float32:
        model = cast("PeftModel", model).merge_and_unload()
    return _placed(model)


def empty_model(folder: Path, *, dtype: str = "auto") -> PreTrainedModel:
    """The model of a folder's config.json and generation_config.json, for weights that aren't in a file.

    Its numbers are whatever was in the memory: every parameter has to be set before it is used.
    `dtype` and device are those of `load_model`.
    """
    config = AutoConfig.from_pretrained(folder)
    dtype = _resolved(dtype)
    chosen = config.dtype if dtype == "auto" else getattr(torch, dtype)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=chosen or torch.float32)
    model.tie_weights()
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return _placed(model.eval())


def _resolved(dtype: str) -> str:
    return "float32" if dtype == "auto" and not torch.accelerator.is_available() else dtype


def _placed(model: PreTrainedModel) -> PreTrainedModel:
    if not torch.accelerator.is_available():
        return model
    return model.to(torch.accelerator.current_accelerator())


def load_chat_tokenizer(reference: str) -> PreTrainedTokenizerBase:
    """The tokenizer with its chat template.

    Raises:
        CheckpointError: there is no chat template, so the model can't be asked anything.
    """
    start = resolve_model(reference)
    tokenizer = AutoTokenizer.from_pretrained(start.tokenizer, revision=start.revision)
    if tokenizer.chat_template is None:
        raise CheckpointError(
            f"{reference}: the tokenizer has no chat template, so there is no way to ask; "
            "add a chat_template.jinja to the folder"
        )
    return tokenizer


def identity(reference: str) -> str:
    """Changes when the weights do: the run's fingerprint, else names, sizes, times of files."""
    start = resolve_model(reference)
    folder = Path(start.folder)
    if not folder.is_dir():
        return f"{start.folder}@{start.revision}"
    fingerprint = read_run(folder).get("fingerprint")
    if fingerprint:
        return str(fingerprint)
    folders = {folder, Path(start.base)} if Path(start.base).is_dir() else {folder}
    files = [file for each in sorted(folders) for file in sorted(each.iterdir()) if file.is_file()]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()
