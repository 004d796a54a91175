"""A model as its users load it: folder, adapter, embedded or hub id -> weights, tokenizer."""

import hashlib
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dualign.errors import CheckpointError
from dualign.rundir import read_run
from dualign.training.models import Start, find_start, load_checkpoint


def load_model(reference: str, *, dtype: str = "auto") -> PreTrainedModel:
    """The weights, on the accelerator if there is one; an adapter is put on its base.

    Args:
        dtype: `auto` is the checkpoint's own on an accelerator and float32 on a CPU, where bfloat16
            is slow.
    """
    accelerated = torch.accelerator.is_available()
    if dtype == "auto" and not accelerated:
        dtype = "float32"
    model = load_checkpoint(reference, dtype=dtype)
    # In 16 bits, folding would round part of the adapter away: there it stays beside the weights.
    if isinstance(model, PeftModel) and model.dtype == torch.float32:
        model = model.merge_and_unload()
    if accelerated:
        model = model.to(torch.accelerator.current_accelerator())
    return model


def load_chat_tokenizer(reference: str) -> PreTrainedTokenizerBase:
    """The tokenizer with its chat template.

    Raises:
        CheckpointError: there is no chat template, so the model can't be asked anything.
    """
    start = find_start(reference)
    tokenizer = AutoTokenizer.from_pretrained(_tokenizer_folder(start), revision=start.revision)
    if tokenizer.chat_template is None:
        raise CheckpointError(
            f"{reference}: the tokenizer has no chat template, so there is no way to ask; "
            "add a chat_template.jinja to the folder"
        )
    return tokenizer


def identity(reference: str) -> str:
    """Changes when the weights do: the run's fingerprint, else names, sizes, times of files."""
    start = find_start(reference)
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


def _tokenizer_folder(start: Start) -> str:
    """The adapter's folder, unless it was saved without a tokenizer, as PEFT does."""
    if start.adapter is not None and not (start.adapter / "tokenizer_config.json").is_file():
        return start.base
    return start.folder
