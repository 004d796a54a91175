"""What is exported: weights with their adapters folded in, the tokenizer, and how both are used."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.checkpoints.checkpoint import Weights, read_json
from dualign.checkpoints.shards import nearest_file
from dualign.errors import CheckpointError
from dualign.export.architecture import KNOWN, Architecture, architecture_of
from dualign.export.tensors import Tensor, tensors_of
from dualign.export.vocabulary import Vocabulary, vocabulary_of
from dualign.model_ref import EMBEDDED_PREFIX, ModelRef

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The model as GGUF has it."""

    architecture: Architecture
    vocabulary: Vocabulary
    tensors: list[Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A checkpoint, opened; weights are read when they are written."""

    model: str
    name: str
    weights: Weights
    tokenizer: "PreTrainedTokenizerBase"
    generation: Mapping[str, Any]
    layout: Layout | None
    """None: an architecture that only llama.cpp's converter knows"""

    @property
    def chat_template(self) -> str:
        return str(self.tokenizer.get_chat_template())

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a turn."""
        named = self.generation.get("eos_token_id")
        ids = {*(named if isinstance(named, list) else [named]), self.tokenizer.eos_token_id}
        return frozenset(int(one) for one in ids if one is not None)


def open_source(model: str, *, name: str | None, foreign: bool) -> Source:
    """Open a run directory, model folder, adapter, hub id or embedded model.

    Args:
        name: what the files are called after; None: the folder.
        foreign: whether an architecture that dualign doesn't write is let through.

    Raises:
        DualignError: it can't be exported as the model it is.
    """
    from dualign.checkpoints.weights import open_weights
    from dualign.export.ggml import INSTALL
    from dualign.models.inference import load_chat_tokenizer

    if find_spec("gguf") is None:
        raise CheckpointError(f"writing GGUF files needs the package gguf: {INSTALL}")
    weights = open_weights(model)
    tokenizer = load_chat_tokenizer(model)
    found = (weights.config.get("architectures") or ["none"])[0]
    generation = [read_json(file) for file in nearest_file(weights, "generation_config.json")]
    return Source(
        model=model,
        name=name or _name(model),
        weights=weights,
        tokenizer=tokenizer,
        generation=generation[0] if generation else {},
        layout=None if foreign and found not in KNOWN else _layout(weights, tokenizer, model),
    )


def _layout(weights: Weights, tokenizer: "PreTrainedTokenizerBase", place: str) -> Layout:
    architecture = architecture_of(weights.config, place)
    return Layout(
        architecture=architecture,
        vocabulary=vocabulary_of(tokenizer, architecture.vocab_size, place),
        tensors=tensors_of(weights, architecture),
    )


def _name(model: str) -> str:
    """The last part of a path or id, without what a file name can't have."""
    ref = ModelRef.parse(model)
    path = Path(ref.name.removeprefix(EMBEDDED_PREFIX))
    return re.sub(r"[^\w.-]+", "-", (path.resolve() if path.is_dir() else path).name)
