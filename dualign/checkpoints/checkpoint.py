"""Read a model folder in pieces: one safetensors file, or shards with an index.

Merging, folding and hashing need the weights but not the model, so this builds no model, imports no
torch, and holds only the requested pieces in memory.
"""

import json
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dualign.checkpoints.dtypes import DTYPE_NAMES, STORED, Array, is_finite, to_float32
from dualign.checkpoints.header import BITS, Entry, read_header
from dualign.errors import CheckpointError, MergeError

if TYPE_CHECKING:
    from dualign.checkpoints.pickles import Pickle

HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
_COMPARED = 1 << 20  # elements compared at once


@dataclass(frozen=True, slots=True)
class Reader:
    """A tensor to read in ranges of elements.

    `reader.read(0, 4096)` is its first 4,096 elements in row-major order. A caller that reads it
    from several threads opens a reader for each, if `random_access` says that opening is free.
    """

    read: Callable[[int, int], Array]
    """elements [start, stop) in row-major order, float32 or float64"""
    step: int | None = None
    """ranges that start and end on multiples of this are read best; None: any"""
    random_access: bool = True
    """opening costs nothing, so several readers can share the tensor"""


class Weights(Protocol):
    """The weights of a model: plain, with adapters folded in, or merged; computed when read."""

    folders: tuple[Path, ...]
    """the model's folders, the outermost adapter first, the base last"""
    config: Mapping[str, Any]
    """config.json, as it must be for these weights"""
    entries: Mapping[str, Entry]
    """all tensors by name; without a head that is tied to the embedding"""
    files: tuple[Path, ...]
    """all weight files"""

    def reader(self, name: str) -> Reader: ...


class Checkpoint:
    """A plain model folder. A tied tensor appears once, under the embedding's name."""

    def __init__(self, folder: Path, *, allow_pickle: bool = False) -> None:
        """`allow_pickle` reads pytorch_model.bin where there are no safetensors."""
        self.folder = folder
        self.folders: tuple[Path, ...] = (folder,)
        self.config: Mapping[str, Any] = _read_config(folder)
        self._pickles: dict[Path, Pickle] = {}
        located = self._locate_pickles() if allow_pickle else None
        stored = dict(sorted((_locate(folder) if located is None else located).items()))
        for name, entry in stored.items():
            _require_floats(name, entry)
        self.files = tuple(sorted({entry.file for entry in stored.values()}))
        self._open_files: dict[Path, int] = {}
        weakref.finalize(self, _close, self._open_files)
        self.entries: Mapping[str, Entry] = self._without_tied_head(stored)

    def reader(self, name: str) -> Reader:
        """Open a stored tensor.

        Reading raises MergeError for a NaN or an infinity, CheckpointError for a truncated file.
        """
        entry = self.entries[name]
        stored = self._stored(name, entry)

        def read(start: int, stop: int) -> Array:
            piece = stored(start, stop)
            if not is_finite(piece, entry.dtype):
                raise _not_finite(entry, name, to_float32(piece, entry.dtype), start)
            return to_float32(piece, entry.dtype)

        return Reader(read)

    def _stored(self, name: str, entry: Entry) -> Callable[[int, int], Array]:
        """Return a function that reads elements [start, stop) in the stored type."""
        if entry.file in self._pickles:
            pickled = self._pickles[entry.file]
            return lambda start, stop: pickled.read(name, start, stop)
        handle, stored, width = self._open(entry.file), STORED[entry.dtype], BITS[entry.dtype] // 8

        def read(start: int, stop: int) -> Array:
            piece = np.empty(stop - start, stored)
            size = os.preadv(handle, [piece.view(np.uint8).data], entry.offset + start * width)
            if size != piece.nbytes:
                raise CheckpointError(
                    f"{entry.file}: {name}: the file ends early; was it changed while it was read?"
                )
            return piece

        return read

    def _locate_pickles(self) -> dict[str, Entry] | None:
        """Locate the tensors of pickles; None if there are safetensors or no pickles."""
        files = _pickle_files(self.folder)
        if not files:
            return None
        from dualign.checkpoints.pickles import Pickle

        self._pickles = {file: Pickle(file) for file in files}
        entries: dict[str, Entry] = {}
        for file, indexed in files.items():
            stored = self._pickles[file].entries()
            _require_indexed(file, stored, indexed)
            entries |= stored
        return entries

    def _without_tied_head(self, stored: dict[str, Entry]) -> dict[str, Entry]:
        embedding = embedding_name(stored)
        if embedding is None or HEAD not in stored:
            _require_head(self.config, stored, self.folder)
            return stored
        if not self.config.get("tie_word_embeddings", False):
            return stored
        if not self._same_bytes(stored, HEAD, embedding):
            raise MergeError(
                f"{self.folder}: config.json says tie_word_embeddings: true, but {HEAD} and "
                f"{embedding} differ; "
                "set it to false if both are meant, or remove the head"
            )
        return {name: entry for name, entry in stored.items() if name != HEAD}

    def _same_bytes(self, stored: Mapping[str, Entry], a: str, b: str) -> bool:
        if (stored[a].shape, stored[a].dtype) != (stored[b].shape, stored[b].dtype):
            return False
        size, read_a, read_b = (
            stored[a].size,
            *(self._stored(name, stored[name]) for name in (a, b)),
        )
        return all(
            read_a(start, stop).tobytes() == read_b(start, stop).tobytes()
            for start in range(0, size, _COMPARED)
            for stop in [min(start + _COMPARED, size)]
        )

    def _open(self, file: Path) -> int:
        if file not in self._open_files:
            self._open_files[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        return self._open_files[file]


def _close(handles: dict[Path, int]) -> None:
    for handle in handles.values():
        os.close(handle)


def _not_finite(entry: Entry, name: str, values: Array, start: int) -> MergeError:
    """Return the error for values, from element `start` on, that hold a NaN or an infinity."""
    places = np.flatnonzero(~np.isfinite(values))
    first = [int(i) for i in np.unravel_index(start + int(places[0]), entry.shape or (1,))]
    return MergeError(
        f"{entry.file}: {name} holds NaN or infinite values, {values[places[0]]} at {first} first; "
        "it can't be used"
    )


def read_whole(weights: Weights, name: str) -> Array:
    """Read a tensor in one piece and in its shape."""
    entry = weights.entries[name]
    return weights.reader(name).read(0, entry.size).reshape(entry.shape)


def read_json(file: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(value).__name__}")
    return value


def embedding_name(names: Mapping[str, object]) -> str | None:
    """Return the name of the input embedding; None unless there is exactly one."""
    endings = tuple(f".{embedding}" for embedding in _EMBEDDINGS)
    embeddings = [name for name in names if name in _EMBEDDINGS or name.endswith(endings)]
    return embeddings[0] if len(embeddings) == 1 else None


def is_tied(weights: Weights) -> bool:
    """Return True if the output head is the input embedding."""
    return embedding_name(weights.entries) is not None and HEAD not in weights.entries


def require_inside(file: Path, folder: Path) -> None:
    """Refuse a link that leaves the model folder; in the hub's cache, the repository's folder.

    Raises:
        CheckpointError: it does.
    """
    target, root = file.resolve(), folder.resolve()
    if root.parent.name == "snapshots":
        root = root.parent.parent
    if not target.is_relative_to(root):
        raise CheckpointError(
            f"{file}: a link to {target}, outside of the model folder; copy the file there instead"
        )


def _require_floats(name: str, entry: Entry) -> None:
    if entry.dtype not in DTYPE_NAMES:
        raise MergeError(
            f"{entry.file}: {name} is stored as {entry.dtype}; expected {', '.join(DTYPE_NAMES)}: "
            "quantized weights can't be summed, use the checkpoint they were made from"
        )


def _read_config(folder: Path) -> dict[str, Any]:
    require_inside(folder / "config.json", folder)
    config = read_json(folder / "config.json")
    if "quantization_config" in config:
        raise MergeError(
            f"{folder}: a quantized checkpoint; use the checkpoint that it was made from"
        )
    return config


def _require_head(config: Mapping[str, Any], stored: Mapping[str, Entry], folder: Path) -> None:
    """Refuse an untied causal model without a head: it would get a random one when loaded."""
    names = config.get("architectures")
    causal = isinstance(names, list) and any(str(name).endswith("ForCausalLM") for name in names)
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


def _locate(folder: Path) -> dict[str, Entry]:
    """Locate every tensor of a folder."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file() and index.is_file():
        raise CheckpointError(
            f"{folder}: has both {single.name} and {index.name}; remove the one that is stale"
        )
    if single.is_file():
        require_inside(single, folder)
        return read_header(single)
    if index.is_file():
        return _locate_shards(folder, index)
    pickles = sorted(file.name for file in folder.glob("*.bin"))
    hint = (
        f"; {pickles[0]} is a pickle: save it as safetensors first, or allow it (--allow-pickle, "
        "allow_pickle: true)"
        if pickles
        else ""
    )
    raise CheckpointError(f"{folder}: expected {single.name} or {index.name}{hint}")


def _pickle_files(folder: Path) -> dict[Path, set[str] | None]:
    """List pytorch_model.bin (None), or its shards with the tensors that the index lists for each.

    Empty if there are safetensors.
    """
    safetensors = (folder / "model.safetensors", folder / "model.safetensors.index.json")
    single, index = folder / "pytorch_model.bin", folder / "pytorch_model.bin.index.json"
    if any(file.is_file() for file in safetensors):
        return {}
    if single.is_file() and index.is_file():
        raise CheckpointError(
            f"{folder}: has both {single.name} and {index.name}; remove the one that is stale"
        )
    if single.is_file():
        require_inside(single, folder)
        return {single: None}
    return {**_read_index(folder, index)} if index.is_file() else {}


def _locate_shards(folder: Path, index: Path) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for file, indexed in _read_index(folder, index).items():
        stored = read_header(file)
        _require_indexed(file, stored, indexed)
        entries |= stored
    return entries


def _read_index(folder: Path, index: Path) -> dict[Path, set[str]]:
    """Read the shards of an index, each with the tensors that the index lists for it."""
    require_inside(index, folder)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: expected a weight_map with tensors, found {type(weight_map).__name__}"
        )
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index}: {shard!r} isn't a file of this folder")
    shards: dict[Path, set[str]] = {}
    for shard in sorted(set(weight_map.values())):
        require_inside(folder / shard, folder)
        shards[folder / shard] = {name for name, file in weight_map.items() if file == shard}
    return shards


def _require_indexed(file: Path, stored: Mapping[str, Entry], indexed: set[str] | None) -> None:
    """Raise CheckpointError unless the index lists what the file holds; None: there is no index."""
    if indexed is None:
        return
    index = f"{'pytorch_model.bin' if file.suffix == '.bin' else 'model.safetensors'}.index.json"
    for name in sorted(set(stored) - indexed):
        raise CheckpointError(
            f"{file}: {name!r} isn't in {index}; the index is stale or incomplete"
        )
    for name in sorted(indexed - set(stored)):
        raise CheckpointError(
            f"{file}: the index says {name!r} is here, and it isn't; fetch the file again"
        )
