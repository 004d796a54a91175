"""A view of a model whose embedding and head rows are remapped to the merged vocabulary on read.

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
from dualign.merging.tokenizer.mapping import RowSource, VocabularyMapping
from dualign.merging.tokenizer.token_id_fields import IdMap, map_ids, unmapped_ids
from dualign.merging.tokenizer.vocabulary import write_tokenizer
from dualign.rundir import write_json

_GENERATION = "generation_config.json"
_HEADS = ("lm_head.weight", "lm_head.bias", "embed_out.weight", "embed_out.bias", "output.weight")


class _RemappedWeights:
    """One model of a merge in the merged vocabulary; the ids in `config` are mapped as well."""

    def __init__(
        self, name: str, models: Mapping[str, Weights], mapping: VocabularyMapping
    ) -> None:
        self.models = models
        self.inner = models[name]
        self.row_map = mapping.row_maps[name]
        self.row_sources = mapping.row_sources
        self.folders = self.inner.folders
        self.files: tuple[Path, ...] = (*self.inner.files, mapping.vocabularies[name].file)
        before, after = mapping.vocabularies[name].rows, mapping.vocabulary.rows
        config = map_ids(self.inner.config, _id_map(name, mapping))
        self.config: Mapping[str, Any] = _resized(config, before, after)
        self._token_tensors = _token_tensors(self.inner)
        self.entries: Mapping[str, Entry] = {
            tensor: replace(entry, shape=(after, *entry.shape[1:]))
            if tensor in self._token_tensors
            else entry
            for tensor, entry in self.inner.entries.items()
        }
        lacking = np.flatnonzero(self.row_map < 0)
        self._others = {model for row in lacking for model, _ in self.row_sources[int(row)]}
        self._is_identity = np.array_equal(self.row_map, np.arange(before))

    def reader(self, name: str) -> Reader:
        """Return a reader of the tensor, its rows by the ids of the merged vocabulary."""
        inner = self.inner.reader(name)
        if name not in self._token_tensors or self._is_identity:
            return inner
        for model in sorted(self._others):
            if name not in self.models[model].entries:
                raise MergeError(
                    f"{self.models[model].folders[0]}: has no tensor {name}, which rows of "
                    f"{self.folders[0]} are to come from; tied and untied models can't be merged"
                )
        others = {model: self.models[model].reader(name) for model in self._others}
        shape = self.entries[name].shape
        columns = shape[1] if len(shape) > 1 else 1

        def read(start: int, stop: int) -> Array:
            first, last = start // columns, -(-stop // columns)
            parts = [
                self._rows(inner, others, columns, row, count)
                for row, count in _runs(self.row_map, first, last)
            ]
            block = parts[0] if len(parts) == 1 else np.concatenate(parts)
            return block[start - first * columns : stop - first * columns]

        random_access = inner.random_access and all(
            reader.random_access for reader in others.values()
        )
        return Reader(read, random_access=random_access)

    def _rows(
        self, inner: Reader, others: Mapping[str, Reader], columns: int, row: int, count: int
    ) -> Array:
        """Read a run: `count` of this model's rows, or the one row from `row_sources`."""
        own = int(self.row_map[row])
        if own >= 0:
            return inner.read(own * columns, (own + count) * columns)
        return _mean_row(self.row_sources[row], others, columns)


def _runs(row_map: Array, first: int, last: int) -> list[tuple[int, int]]:
    """Split the rows [first, last) into runs (row, count) that are contiguous in the model.

    The row map [5, 6, -1, -1, 0] gives (0, 2), (2, 1), (3, 1), (4, 1): a row that the model lacks
    is a run of its own.
    """
    part = row_map[first:last]
    breaks = np.flatnonzero((np.diff(part) != 1) | (part[:-1] < 0)) + first + 1
    edges = [first, *map(int, breaks), last]
    return [(row, after - row) for row, after in pairwise(edges)]


def _mean_row(source: RowSource, others: Mapping[str, Reader], columns: int) -> Array:
    rows = [others[name].read(row * columns, (row + 1) * columns) for name, row in source]
    if not rows:
        return np.zeros(columns, np.float32)
    if len(rows) == 1:
        return rows[0]
    total = rows[0].astype(np.float64)
    for row in rows[1:]:
        total += row
    return total / len(rows)


def _token_tensors(weights: Weights) -> set[str]:
    """Return the tensors with a row for each token: embedding, head and the head's bias.

    Raises:
        MergeError: another tensor has as many rows, and might be one of them.
    """
    embedding = embedding_name(weights.entries)
    assert embedding is not None, "checked when the vocabulary was read"
    rows, stack = weights.entries[embedding].shape[0], find_stack(weights.entries)
    names = {embedding}
    for name, entry in weights.entries.items():
        if entry.shape[:1] != (rows,) or name == embedding or stack.layer(name) is not None:
            continue
        if name in _HEADS or name.endswith(tuple(f".{head}" for head in _HEADS)):
            names.add(name)
        elif len(entry.shape) > 1 and not ("wpe" in name or "position" in name):
            raise MergeError(
                f"{weights.folders[0]}: {name} has as many rows as the vocabulary, and isn't known "
                "to go by token; merge models with one tokenizer instead"
            )
    return names


def _id_map(name: str, mapping: VocabularyMapping) -> IdMap:
    """Return the map from a model's ids to those of the merged vocabulary."""
    tokens = {token_id: token for token, token_id in mapping.vocabularies[name].ids.items()}
    row_map, merged_ids = mapping.row_maps[name], mapping.vocabulary.ids

    def id_map(token_id: int) -> int | str:
        if token_id in tokens:
            return merged_ids.get(tokens[token_id], tokens[token_id])
        is_padding = token_id < len(row_map) and row_map[token_id] == token_id
        return token_id if is_padding else f"row {token_id}, which is no token"

    return id_map


def _resized(config: Mapping[str, Any], before: int, after: int) -> dict[str, Any]:
    """Return the settings with the new number of rows, in nested settings too."""
    return {
        key: after
        if key == "vocab_size" and value == before
        else _resized(value, before, after)
        if isinstance(value, dict)
        else value
        for key, value in config.items()
    }


def remap_models(
    models: Mapping[str, Weights], mapping: VocabularyMapping | None
) -> Mapping[str, Weights]:
    """Return each model in the merged vocabulary."""
    if mapping is None:
        return models
    return {name: _RemappedWeights(name, models, mapping) for name in models}


def require_ids(config: Mapping[str, Any], file: Path) -> None:
    """Raise MergeError if the settings name a token that the merged vocabulary doesn't have."""
    for key, token in unmapped_ids(config).items():
        raise MergeError(
            f"{file}: {key} is {token!r}, which the merged vocabulary doesn't have; take the config "
            "or the tokenizer from another model, or set tokenizer_source: union"
        )


def write_vocabulary(work: Path, name: str, weights: Weights, mapping: VocabularyMapping) -> None:
    """Update the tokenizer and the generation settings that were copied into `work`.

    The generation settings are those of the model `name`.

    Raises:
        MergeError: they name a token that the merged vocabulary doesn't have.
    """
    write_tokenizer(work, mapping.vocabulary, mapping.added)
    for file in nearest_file(weights, _GENERATION):
        before = read_json(file)
        mapped = map_ids(before, _id_map(name, mapping))
        require_ids(mapped, file)
        if mapped != before:
            write_json(work / _GENERATION, mapped)
