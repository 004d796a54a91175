"""A model in the merged model's vocabulary: the rows of its embedding and head gathered as they are read.

So every method, `verify` and the writer see models of one vocabulary, and no whole embedding is in
memory.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dualign.checkpoints.checkpoint import Reader, Weights, embedding_name, read_json
from dualign.checkpoints.dtypes import Array
from dualign.checkpoints.header import Entry
from dualign.checkpoints.shards import nearest_file
from dualign.errors import MergeError
from dualign.merging.layers import find_stack
from dualign.merging.tokenizer.alignment import Alignment, Source
from dualign.merging.tokenizer.token_id_fields import Move, lost_in, move_ids
from dualign.merging.tokenizer.vocabulary import write_tokenizer
from dualign.rundir import write_json

GENERATION = "generation_config.json"
HEADS = ("lm_head.weight", "lm_head.bias", "embed_out.weight", "embed_out.bias", "output.weight")


class Realigned:
    """One model of a merge; `config` has its ids where the tokens are now."""

    def __init__(self, name: str, models: Mapping[str, Weights], alignment: Alignment) -> None:
        self.models = models
        self.inner = models[name]
        self.own = alignment.own[name]
        self.sources = alignment.sources
        self.folders = self.inner.folders
        self.files: tuple[Path, ...] = (*self.inner.files, alignment.known[name].file)
        before, after = alignment.known[name].rows, alignment.vocabulary.rows
        moved = move_ids(self.inner.config, mover(name, alignment))
        self.config: Mapping[str, Any] = _resized(moved, before, after)
        self._by_token = by_token(self.inner)
        self.entries: Mapping[str, Entry] = {
            tensor: replace(entry, shape=(after, *entry.shape[1:]))
            if tensor in self._by_token
            else entry
            for tensor, entry in self.inner.entries.items()
        }
        lacking = [self.sources[int(row)] for row in np.flatnonzero(self.own < 0)]
        self._others = {model for source in lacking for model, _ in source}
        self._stays = np.array_equal(self.own, np.arange(before))

    def reader(self, name: str) -> Reader:
        """The tensor, its rows by the ids of the merged model."""
        mine = self.inner.reader(name)
        if name not in self._by_token or self._stays:
            return mine
        for other in sorted(self._others):
            _require_tensor(self.models[other], name, self.inner)
        others = {other: self.models[other].reader(name) for other in self._others}
        shape = self.entries[name].shape
        columns = shape[1] if len(shape) > 1 else 1

        def read(start: int, stop: int) -> Array:
            first, last = start // columns, -(-stop // columns)
            parts = [
                self._rows(mine, others, columns, *run) for run in _runs(self.own, first, last)
            ]
            found = parts[0] if len(parts) == 1 else np.concatenate(parts)
            return found[start - first * columns : stop - first * columns]

        random_access = mine.random_access and all(one.random_access for one in others.values())
        return Reader(read, random_access=random_access)

    def _rows(
        self, mine: Reader, others: Mapping[str, Reader], columns: int, row: int, count: int
    ) -> Array:
        """`count` rows from `row` on: one stretch of this model's, or one row from elsewhere."""
        here = int(self.own[row])
        if here >= 0:
            return mine.read(here * columns, (here + count) * columns)
        return _from(self.sources[row], others, columns)


def _runs(own: Array, first: int, last: int) -> list[tuple[int, int]]:
    """The rows [first, last) as (row, count), each a stretch in the model or one row without place."""
    breaks = np.flatnonzero(np.diff(own[first:last]) != 1) + first + 1
    edges = [first, *map(int, breaks), last]
    return [(one, after - one) for one, after in pairwise(edges)]


def _from(source: Source, others: Mapping[str, Reader], columns: int) -> Array:
    rows = [others[name].read(row * columns, (row + 1) * columns) for name, row in source]
    if not rows:
        return np.zeros(columns, np.float32)
    if len(rows) == 1:
        return rows[0]
    total = rows[0].astype(np.float64)
    for one in rows[1:]:
        total += one
    return total / len(rows)


def _require_tensor(weights: Weights, name: str, wanting: Weights) -> None:
    if name not in weights.entries:
        raise MergeError(
            f"{weights.folders[0]}: has no tensor {name}, which rows of {wanting.folders[0]} are "
            "to come from; tied and untied models can't be merged"
        )


def by_token(weights: Weights) -> set[str]:
    """The tensors whose rows go by token.

    Raises:
        MergeError: a tensor might be one of them.
    """
    embedding = embedding_name(weights.entries)
    assert embedding is not None, "checked when the vocabulary was read"
    rows, stack = weights.entries[embedding].shape[0], find_stack(weights.entries)
    found = {embedding}
    for name, entry in weights.entries.items():
        if entry.shape[:1] != (rows,) or name == embedding or stack.layer(name) is not None:
            continue
        if name in HEADS or name.endswith(tuple(f".{one}" for one in HEADS)):
            found.add(name)
        elif len(entry.shape) > 1 and not ("wpe" in name or "position" in name):
            raise MergeError(
                f"{weights.folders[0]}: {name} has as many rows as the vocabulary, and isn't known "
                "to go by token; merge models with one tokenizer instead"
            )
    return found


def mover(name: str, alignment: Alignment) -> Move:
    """Where a model's ids went."""
    before = {place: token for token, place in alignment.known[name].ids.items()}
    own, after = alignment.own[name], alignment.vocabulary.ids

    def move(place: int) -> int | str:
        if place in before:
            return after.get(before[place], before[place])
        stays = place < len(own) and own[place] == place
        return place if stays else f"row {place}, which is no token"

    return move


def _resized(config: Mapping[str, Any], before: int, after: int) -> dict[str, Any]:
    """The settings with the new number of rows, in those of a part of the model too."""
    return {
        key: after
        if key == "vocab_size" and value == before
        else _resized(value, before, after)
        if isinstance(value, dict)
        else value
        for key, value in config.items()
    }


def realign(models: Mapping[str, Weights], alignment: Alignment | None) -> Mapping[str, Weights]:
    """Each model in the merged model's vocabulary."""
    if alignment is None:
        return models
    return {name: Realigned(name, models, alignment) for name in models}


def require_ids(config: Mapping[str, Any], file: Path) -> None:
    """Raise MergeError when the merged model's settings name a token that it doesn't have."""
    for key, token in lost_in(config).items():
        raise MergeError(
            f"{file}: {key} is {token!r}, which the merged vocabulary doesn't have; take the config "
            "or the tokenizer from another model, or set tokenizer_source: union"
        )


def write_vocabulary(work: Path, name: str, weights: Weights, alignment: Alignment) -> None:
    """Bring tokenizer and generation settings in `work`, which were copied, up to date.

    The generation settings are those of the model `name`.

    Raises:
        MergeError: they name a token that is gone.
    """
    write_tokenizer(work, alignment.vocabulary, alignment.new)
    for file in nearest_file(weights, GENERATION):
        before = read_json(file)
        moved = move_ids(before, mover(name, alignment))
        require_ids(moved, file)
        if moved != before:
            write_json(work / GENERATION, moved)
