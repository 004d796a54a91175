"""A model folder on disk, read in pieces: one safetensors file, or shards with an index.

Merging, folding and hashing need the weights but not the model, so nothing here builds one or
imports torch, and only the pieces asked for are in memory.
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
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
_COMPARED = 1 << 20  # elements compared at once


@dataclass(frozen=True, slots=True)
class Reader:
    """One tensor, any stretch of it at a time."""

    read: Callable[[int, int], Array]
    """the elements [start, stop) in row-major order, float32 or float64"""
    step: int | None = None
    """it is best read in stretches that start and end on multiples of this; None: any"""
    random_access: bool = True
    """whether opening it costs nothing, so that several can share the tensor"""


class Weights(Protocol):
    """The weights of a model: plain, with adapters folded in, or merged, as they are read."""

    folders: tuple[Path, ...]
    """the folders that the model is made of, the outermost adapter first, the base last"""
    config: Mapping[str, Any]
    """config.json, as it must be for these weights"""
    entries: Mapping[str, Entry]
    """every tensor; a head that is tied to the embedding isn't one of them"""
    files: tuple[Path, ...]
    """every weight file that is read"""

    def reader(self, name: str) -> Reader: ...


class Checkpoint:
    """A plain model folder. Each tied tensor appears once, under the embedding's name."""

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
        """The stored tensor.

        Reading raises MergeError for a NaN or an infinity, CheckpointError for a file cut short.
        """
        entry = self.entries[name]
        stored = self._stored(name, entry)

        def read(start: int, stop: int) -> Array:
            piece = stored(start, stop)
            if not is_finite(piece, entry.dtype):
                raise not_finite(entry, name, to_float32(piece, entry.dtype), start)
            return to_float32(piece, entry.dtype)

        return Reader(read)

    def _stored(self, name: str, entry: Entry) -> Callable[[int, int], Array]:
        """What gives the elements [start, stop) as they are stored."""
        if entry.file in self._pickles:
            pickled = self._pickles[entry.file]
            return lambda start, stop: pickled.read(name, start, stop)
        handle, stored, width = self._open(entry.file), STORED[entry.dtype], BITS[entry.dtype] // 8

        def read(start: int, stop: int) -> Array:
            piece = np.empty(stop - start, stored)
            got = os.preadv(handle, [piece.view(np.uint8).data], entry.offset + start * width)
            if got != piece.nbytes:
                raise CheckpointError(
                    f"{entry.file}: {name}: the file ends early; was it changed while it was read?"
                )
            return piece

        return read

    def _locate_pickles(self) -> dict[str, Entry] | None:
        """Every tensor of pickles; None where there are safetensors, or no pickles."""
        files = pickle_files(self.folder)
        if not files:
            return None
        from dualign.checkpoints.pickles import Pickle

        self._pickles = {file: Pickle(file) for file in files}
        found: dict[str, Entry] = {}
        for file, listed in files.items():
            stored = self._pickles[file].entries()
            _require_listed(file, stored, listed)
            found |= stored
        return found

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

    def _same_bytes(self, stored: Mapping[str, Entry], one: str, other: str) -> bool:
        first, second = stored[one], stored[other]
        if (first.shape, first.dtype) != (second.shape, second.dtype):
            return False
        ours, theirs = self._stored(one, first), self._stored(other, second)
        return all(
            ours(start, stop).tobytes() == theirs(start, stop).tobytes()
            for start in range(0, first.size, _COMPARED)
            for stop in [min(start + _COMPARED, first.size)]
        )

    def _open(self, file: Path) -> int:
        if file not in self._open_files:
            self._open_files[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        return self._open_files[file]


def _close(handles: dict[Path, int]) -> None:
    for handle in handles.values():
        os.close(handle)


def not_finite(entry: Entry, name: str, values: Array, start: int) -> MergeError:
    """The error for a stretch from `start` on that holds a NaN or an infinity."""
    places = np.flatnonzero(~np.isfinite(values))
    first = [int(one) for one in np.unravel_index(start + int(places[0]), entry.shape or (1,))]
    return MergeError(
        f"{entry.file}: {name} holds NaN or infinite values, {values[places[0]]} at {first} first; "
        "it can't be used"
    )


def read_whole(weights: Weights, name: str) -> Array:
    """A tensor in one piece and in its shape."""
    entry = weights.entries[name]
    return weights.reader(name).read(0, entry.size).reshape(entry.shape)


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(found).__name__}")
    return found


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


def require_inside(file: Path, folder: Path) -> None:
    """Refuse a link that leaves the model folder; in the hub's cache, the repository's folder.

    Raises:
        CheckpointError: it does.
    """
    place, home = file.resolve(), folder.resolve()
    if home.parent.name == "snapshots":
        home = home.parent.parent
    if not place.is_relative_to(home):
        raise CheckpointError(
            f"{file}: a link to {place}, outside of the model folder; copy the file there instead"
        )


def _require_floats(name: str, entry: Entry) -> None:
    if entry.dtype not in DTYPE_NAMES:
        raise MergeError(
            f"{entry.file}: {name} is stored as {entry.dtype}; expected {', '.join(DTYPE_NAMES)}: "
            "quantised weights can't be summed, use the checkpoint they were made from"
        )


def _read_config(folder: Path) -> dict[str, Any]:
    require_inside(folder / "config.json", folder)
    config = read_json(folder / "config.json")
    if "quantization_config" in config:
        raise MergeError(
            f"{folder}: a quantised checkpoint; use the checkpoint that it was made from"
        )
    return config


def _require_head(config: Mapping[str, Any], stored: Mapping[str, Entry], folder: Path) -> None:
    """An untied causal model without a head would get a random one when it is loaded."""
    named = config.get("architectures")
    causal = isinstance(named, list) and any(str(one).endswith("ForCausalLM") for one in named)
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
    """Every tensor and where it lies."""
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
    pickles = sorted(one.name for one in folder.glob("*.bin"))
    hint = (
        f"; {pickles[0]} is a pickle: save it as safetensors first, or allow it (--allow-pickle, "
        "allow_pickle: true)"
        if pickles
        else ""
    )
    raise CheckpointError(f"{folder}: expected {single.name} or {index.name}{hint}")


def pickle_files(folder: Path) -> dict[Path, set[str] | None]:
    """pytorch_model.bin, or its shards, with the tensors that an index lists; none beside safetensors."""
    safe = (folder / "model.safetensors", folder / "model.safetensors.index.json")
    single, index = folder / "pytorch_model.bin", folder / "pytorch_model.bin.index.json"
    if any(one.is_file() for one in safe):
        return {}
    if single.is_file() and index.is_file():
        raise CheckpointError(
            f"{folder}: has both {single.name} and {index.name}; remove the one that is stale"
        )
    if single.is_file():
        require_inside(single, folder)
        return {single: None}
    return {**_listed(folder, index)} if index.is_file() else {}


def _locate_shards(folder: Path, index: Path) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for file, listed in _listed(folder, index).items():
        stored = read_header(file)
        _require_listed(file, stored, listed)
        found |= stored
    return found


def _listed(folder: Path, index: Path) -> dict[Path, set[str]]:
    """The shards of an index, each with the tensors that are said to be in it."""
    require_inside(index, folder)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: expected a weight_map with tensors, found {type(weight_map).__name__}"
        )
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index}: {shard!r} isn't a file of this folder")
    found: dict[Path, set[str]] = {}
    for shard in sorted(set(weight_map.values())):
        require_inside(folder / shard, folder)
        found[folder / shard] = {name for name, home in weight_map.items() if home == shard}
    return found


def _require_listed(file: Path, stored: Mapping[str, Entry], listed: set[str] | None) -> None:
    """Raise CheckpointError unless the index lists what is in the file; None: there is no index."""
    if listed is None:
        return
    index = f"{'pytorch_model.bin' if file.suffix == '.bin' else 'model.safetensors'}.index.json"
    for name in sorted(set(stored) - listed):
        raise CheckpointError(
            f"{file}: {name!r} isn't in {index}; the index is stale or incomplete"
        )
    for name in sorted(listed - set(stored)):
        raise CheckpointError(
            f"{file}: the index says {name!r} is here, and it isn't; fetch the file again"
        )
