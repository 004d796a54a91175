"""The model to export: weights with adapters folded in, tokenizer, generation settings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.checkpoints.checkpoint import Weights, read_json
from dualign.checkpoints.shards import nearest_file
from dualign.errors import CheckpointError
from dualign.export.architecture import SUPPORTED, architecture_of
from dualign.export.tensors import tensors_of
from dualign.export.vocabulary import vocabulary_of
from dualign.export.writer import GGUFLayout
from dualign.model_ref import EMBEDDED_PREFIX, ModelRef

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSource:
    """An open checkpoint; its weights are read while they are written."""

    model: str
    name: str
    weights: Weights
    tokenizer: "PreTrainedTokenizerBase"
    generation: Mapping[str, Any]
    layout: GGUFLayout | None
    """None for an architecture that only llama.cpp's converter supports"""

    @property
    def chat_template(self) -> str:
        return str(self.tokenizer.get_chat_template())

    @property
    def ends(self) -> frozenset[int]:
        """Ids of the tokens that end a turn."""
        from dualign.models.tokenizer import eos_token_ids

        return frozenset(eos_token_ids(self.generation.get("eos_token_id"), self.tokenizer))


def open_source(model: str, *, name: str | None, foreign: bool) -> ExportSource:
    """Open a run directory, model folder, adapter, hub id or embedded model.

    Args:
        name: prefix of the files' names; None: the folder's name.
        foreign: accept architectures that only llama.cpp's converter supports.

    Raises:
        DualignError: llama.cpp would run a different model.
    """
    from dualign.checkpoints.weights import open_weights
    from dualign.export.ggml import INSTALL
    from dualign.models.tokenizer import load_chat_tokenizer

    if find_spec("gguf") is None:
        raise CheckpointError(f"writing GGUF files needs the package gguf: {INSTALL}")
    weights = open_weights(model)
    tokenizer = load_chat_tokenizer(model)
    files = nearest_file(weights, "generation_config.json")
    generation = read_json(files[0]) if files else {}
    name = name or _name(model)
    layout = None
    if not foreign or (weights.config.get("architectures") or ["none"])[0] in SUPPORTED:
        architecture = architecture_of(weights.config, model)
        layout = GGUFLayout(
            name=name,
            architecture=architecture,
            vocabulary=vocabulary_of(tokenizer, architecture.vocab_size, model),
            tensors=tensors_of(weights, architecture),
            generation=generation,
        )
    return ExportSource(
        model=model,
        name=name,
        weights=weights,
        tokenizer=tokenizer,
        generation=generation,
        layout=layout,
    )


def _name(model: str) -> str:
    """Return the last part of a path or id, reduced to characters of file names."""
    ref = ModelRef.parse(model)
    path = Path(ref.name.removeprefix(EMBEDDED_PREFIX))
    return re.sub(r"[^\w.-]+", "-", (path.resolve() if path.is_dir() else path).name)
