"""A model folder on disk, read tensor by tensor: one safetensors file, or shards with an index.

Merging, folding and hashing need the weights but not the model, so nothing here builds one, and
only the tensors asked for are in memory.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dualign.errors import CheckpointError, MergeError

HEAD = "lm_head.weight"
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True)
class Entry:
    """What a file's header says about one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path


class Weights(Protocol):
    """The weights of a model, plain or with adapters folded in as they are read."""

    folders: tuple[Path, ...]
    """the folders that the model is made of, the outermost adapter first, the base last"""
    config: Mapping[str, Any]
    """config.json, as it must be for these weights"""
    entries: Mapping[str, Entry]
    """every tensor; a head that is tied to the embedding isn't one of them"""
    files: tuple[Path, ...]
    """every weight file that is read"""

    def read(self, name: str) -> Tensor: ...


class Checkpoint:
    """A plain model folder. Each tied tensor appears once, under the embedding's name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folders: tuple[Path, ...] = (folder,)
        self.config: Mapping[str, Any] = _read_config(folder)
        self._open_files: dict[Path, Any] = {}
        stored = {name: self._entry(name, file) for name, file in sorted(_locate(folder).items())}
        self.files = tuple(sorted({entry.file for entry in stored.values()}))
        self.entries: Mapping[str, Entry] = self._without_tied_head(stored)

    def read(self, name: str) -> Tensor:
        """The stored tensor, in its own type; it maps the file and must not be written to.

        Raises:
            MergeError: the tensor holds a NaN or an infinity.
        """
        entry = self.entries[name]
        tensor: Tensor = self._open(entry.file).get_tensor(name)
        require_finite(tensor, name, entry.file)
        return tensor

    def _without_tied_head(self, stored: dict[str, Entry]) -> dict[str, Entry]:
        embedding = embedding_name(stored)
        if embedding is None or HEAD not in stored:
            _require_head(self.config, stored, self.folder)
            return stored
        if not self.config.get("tie_word_embeddings", False):
            return stored
        head = self._open(stored[HEAD].file).get_tensor(HEAD)
        if not torch.equal(head, self._open(stored[embedding].file).get_tensor(embedding)):
            raise MergeError(
                f"{self.folder}: config.json says tie_word_embeddings: true, but {HEAD} and "
                f"{embedding} differ; "
                "set it to false if both are meant, or remove the head"
            )
        return {name: entry for name, entry in stored.items() if name != HEAD}

    def _entry(self, name: str, file: Path) -> Entry:
        try:
            header = self._open(file).get_slice(name)
        except SafetensorError:
            raise CheckpointError(
                f"{file}: the index says {name!r} is here, and it isn't; fetch the file again"
            ) from None
        kind = header.get_dtype()
        if kind not in DTYPES:
            raise MergeError(
                f"{file}: {name} is stored as {kind}; expected {', '.join(DTYPES)}: "
                "quantised weights can't be summed, use the checkpoint they were made from"
            )
        return Entry(tuple(header.get_shape()), DTYPES[kind], file)

    def _open(self, file: Path) -> Any:
        if file not in self._open_files:
            self._open_files[file] = open_safetensors(file)
        return self._open_files[file]


def open_safetensors(file: Path) -> Any:
    """The open file; tensors and slices are read from it by name."""
    try:
        return safe_open(file, framework="pt", device="cpu")
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except SafetensorError as error:
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({error}); fetch or write it again"
        ) from None


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except ValueError as error:
        raise CheckpointError(f"{file}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(found).__name__}")
    return found


def require_finite(tensor: Tensor, name: str, where: object) -> None:
    """Raise MergeError when the tensor holds a NaN or an infinity."""
    # A NaN or an infinity always spoils the sum, and one pass without a mask finds that.
    if bool(torch.isfinite(tensor.sum(dtype=torch.float32))):
        return
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise MergeError(
            f"{where}: {name} holds {bad} NaN or infinite values of {tensor.numel()}; "
            "it can't be used"
        )


def embedding_name(names: Mapping[str, object]) -> str | None:
    """The input embedding's name, if there is exactly one."""
    found = [
        name
        for name in names
        if name in EMBEDDINGS or name.endswith(tuple("." + one for one in EMBEDDINGS))
    ]
    return found[0] if len(found) == 1 else None


def is_tied(weights: Weights) -> bool:
    """Whether the output head is the input embedding."""
    return embedding_name(weights.entries) is not None and HEAD not in weights.entries


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    if "quantization_config" in config:
        raise MergeError(
            f"{folder}: a quantised checkpoint; use the checkpoint that it was made from"
        )
    return config


def _require_head(config: Mapping[str, Any], stored: Mapping[str, Entry], folder: Path) -> None:
    """An untied causal model without a head would get a random one when it is loaded."""
    causal = any(str(one).endswith("ForCausalLM") for one in config.get("architectures") or ())
    untied = config.get("tie_word_embeddings") is False
    if (
        causal
        and untied
        and HEAD not in stored
        and embedding_name(stored)
        and "embed_out.weight" not in stored
    ):
        raise CheckpointError(
            f"{folder}: config.json says tie_word_embeddings: false, but there is no {HEAD}"
        )


def _locate(folder: Path) -> dict[str, Path]:
    """Tensor name -> file."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file() and index.is_file():
        raise CheckpointError(
            f"{folder}: has both {single.name} and {index.name}; remove the one that is stale"
        )
    if single.is_file():
        return dict.fromkeys(open_safetensors(single).keys(), single)
    if index.is_file():
        return _locate_shards(folder, index)
    pickles = sorted(one.name for one in folder.glob("*.bin"))
    hint = f"; {pickles[0]} is a pickle: save it as safetensors first" if pickles else ""
    raise CheckpointError(f"{folder}: expected {single.name} or {index.name}{hint}")


def _locate_shards(folder: Path, index: Path) -> dict[str, Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: expected a weight_map with tensors, found {type(weight_map).__name__}"
        )
    for shard in set(weight_map.values()):
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index}: {shard!r} isn't a file of this folder")
    located = {name: folder / shard for name, shard in weight_map.items()}
    for file in sorted(set(located.values())):
        unlisted = set(open_safetensors(file).keys()) - {
            name for name, home in located.items() if home == file
        }
        if unlisted:
            raise CheckpointError(
                f"{file}: {min(unlisted)!r} isn't in {index.name}; the index is stale or incomplete"
            )
    return located
