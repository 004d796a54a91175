"""Fold an adapter into the weights of its base while they are read, a block of rows at a time.

A stretch of a folded tensor has the bits that it has in the whole, on any machine.

A tied head and embedding are one tensor in the base and stay one, unless the adapter changes them
differently: then there are two, and the config says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dualign.checkpoints.checkpoint import (
    HEAD,
    Reader,
    Weights,
    embedding_name,
    is_tied,
    read_json,
)
from dualign.checkpoints.dtypes import Array
from dualign.checkpoints.header import Entry
from dualign.checkpoints.lora import Adapter, LoraModule, Rows, to_float64
from dualign.errors import MergeError

_PIECE, _ROWS = 1 << 15, 32  # computed at once: elements, and rows at least


class AdaptedWeights:
    """The weights of a base with one adapter folded in.

    Changed tensors are read as float64, the others as the base reads them.
    """

    def __init__(self, base: Weights, adapter: Adapter) -> None:
        self.base = base
        self.adapter = adapter
        self.folders = (adapter.folder, *base.folders)
        self.files = (*base.files, adapter.file)
        self.config: Mapping[str, Any] = {**base.config, **_special_ids(adapter.folder)}
        self.entries: Mapping[str, Entry] = base.entries
        self._changed = _changed_names(adapter)
        self._lengthen()
        self._tied_embedding = embedding_name(base.entries) if is_tied(base) else None
        if self._tied_embedding and self._changed & {HEAD, self._tied_embedding}:
            self._untie_if_they_differ(self._tied_embedding)
        self._require_fitting()

    def reader(self, name: str) -> Reader:
        """Open a tensor: as the base reads it, or folded in blocks of whole rows.

        A range of elements is cut from the rows that hold it. With 4 columns and _PIECE = 8, so 2
        rows a block, read(5, 18) takes rows 1 to 4 as [1, 3) and [3, 5), and of their 16 elements
        [1, 14):

            row 0:   0  1  2  3
            row 1:   4 [5  6  7     first = 5 // 4 = 1
            row 2:   8  9 10 11
            row 3:  12 13 14 15
            row 4:  16 17]18 19     last = ceil(18 / 4) = 5

        Raises:
            MergeError: when reading, a value isn't finite.
        """
        stored = self.base.reader(self._stored_name(name))
        if name not in self._changed:
            return stored
        columns = _columns(self.base.entries[self._stored_name(name)].shape)
        block_rows = max(_PIECE // columns, self._least_rows(name))
        folded = cache(lambda: self._rows(name, stored))  # the product's factors, at the first read

        def read(start: int, stop: int) -> Array:
            first, last = start // columns, -(-stop // columns)
            starts = range(first, last, block_rows)
            blocks = [folded()(row, min(row + block_rows, last)) for row in starts]
            values = (np.concatenate(blocks) if blocks[1:] else blocks[0]).reshape(-1)
            self._require_finite(values, name)
            return values[start - first * columns : stop - first * columns]

        return Reader(
            read,
            step=block_rows * columns,
            random_access=stored.random_access and not self._needs_column_norms(name),
        )

    def _lengthen(self) -> None:
        """Add the rows that trained tokens have past the end of the base's embedding and head.

        Raises:
            MergeError: rows are missing between the end and a token, or one of the two is shorter.
        """
        for name, (indices, _) in self.adapter.token_rows.items():
            entry = self.base.entries.get(name)
            if entry is None or max(indices, default=0) < entry.shape[0]:
                continue
            have, needed = entry.shape[0], 1 + max(indices)
            if missing := set(range(have, needed)) - set(indices):
                raise MergeError(
                    f"{self.adapter.folder}: {name} has token rows up to {needed - 1} and none for "
                    f"{min(missing)}, and the base has {have} rows; {_resizing(needed)}"
                )
            self.entries = {**self.entries, name: replace(entry, shape=(needed, *entry.shape[1:]))}
            self.config = _with_vocabulary(self.config, needed)
        lengths = {
            self.entries[name].shape[0]
            for name in (embedding_name(self.entries), HEAD)
            if name and name in self.entries
        }
        if self.entries is not self.base.entries and len(lengths) > 1:
            raise MergeError(
                f"{self.adapter.folder}: has rows of new tokens for embedding or head alone; train "
                "the rows of both"
            )

    def _rows(self, name: str, stored: Reader) -> Rows:
        """Return the folded rows; a replaced tensor may have a low-rank change on top."""
        entry = self.base.entries[self._stored_name(name)]
        columns = _columns(entry.shape)

        def base(start: int, stop: int) -> Array:
            block = stored.read(start * columns, stop * columns)
            return block.reshape(stop - start, -1)

        if name in self.adapter.token_rows:
            return _with_rows(base, entry.shape[0], *self.adapter.token_rows[name])
        replaced = self.adapter.replaced.get(name)
        rows = base if replaced is None else _rows_of(replaced)
        module = self._module(name)
        return rows if module is None else module.apply(rows)

    def _module(self, name: str) -> LoraModule | None:
        return self.adapter.modules.get(name.removesuffix(".weight"))

    def _least_rows(self, name: str) -> int:
        """Return how many rows are worth another pass over the right factor of the change."""
        module = self._module(name)
        return 1 if module is None else max(_ROWS, module.rank // 2)

    def _needs_column_norms(self, name: str) -> bool:
        """Return True for DoRA on an embedding, which takes a pass over all rows first."""
        module = self._module(name)
        return module is not None and module.embedding and module.magnitude is not None

    def _require_finite(self, block: Array, name: str) -> None:
        if not np.isfinite(block.sum()) and not np.isfinite(block).all():
            raise MergeError(f"{self.adapter.file}: {name}, folded, holds NaN or infinite values")

    def _stored_name(self, name: str) -> str:
        return self._tied_embedding if name == HEAD and self._tied_embedding else name

    def _untie_if_they_differ(self, embedding: str) -> None:
        """Keep one tensor if head and embedding change alike; else make two and untie them."""
        rows = self.adapter.token_rows
        if embedding in rows and HEAD not in self._changed:
            return  # PEFT gives the new rows to a tied head as well
        if embedding in rows and HEAD not in rows:
            raise MergeError(
                f"{self.adapter.folder}: trainable tokens and a change of the tied {HEAD}; "
                "use one of the two"
            )
        head = self.entries[embedding]
        for name in sorted(self._changed & {HEAD, embedding}):
            _require_fit(self.adapter, name, head.shape)
        if self._are_equal(embedding, HEAD):
            self._changed -= {HEAD}
            return
        self.entries = {**self.entries, HEAD: head}
        self.config = {**self.config, "tie_word_embeddings": False}

    def _are_equal(self, embedding: str, head: str) -> bool:
        a, b = self.reader(embedding), self.reader(head)
        size, step = self.entries[embedding].size, a.step or b.step or _PIECE
        ranges = [(start, min(start + step, size)) for start in range(0, size, step)]
        return all(np.array_equal(a.read(*span), b.read(*span)) for span in ranges)

    def _require_fitting(self) -> None:
        unknown = sorted(self._changed - set(self.entries))
        if unknown:
            raise MergeError(
                f"{self.adapter.folder}: changes {unknown[0]}, which the base "
                f"{self.base.folders[0]} doesn't have; is it the base that the adapter was "
                "trained on?"
            )
        for name in self._changed:
            _require_fit(self.adapter, name, self.entries[name].shape)


def _changed_names(adapter: Adapter) -> set[str]:
    """Return the names of the base's tensors that the adapter changes."""
    return {*adapter.replaced, *adapter.token_rows, *(f"{path}.weight" for path in adapter.modules)}


def _columns(shape: tuple[int, ...]) -> int:
    return max(prod(shape[1:]), 1)


def _rows_of(tensor: Tensor) -> Rows:
    return lambda start, stop: to_float64(tensor[start:stop])


def _with_rows(base: Rows, count: int, indices: Sequence[int], values: Tensor) -> Rows:
    """Replace some of the base's `count` rows, and add those after; the last of duplicates counts."""
    place = {index: i for i, index in enumerate(indices)}

    def rows(start: int, stop: int) -> Array:
        block = np.empty((stop - start, values.shape[1]))
        if start < count:
            block[: count - start] = base(start, min(stop, count))
        for index in range(start, stop):
            if index in place:
                block[index - start] = to_float64(values[place[index]])
        return block

    return rows


def _require_fit(adapter: Adapter, name: str, shape: tuple[int, ...]) -> None:
    path = name.removesuffix(".weight")
    shapes: list[tuple[int, ...]] = (
        [tuple(adapter.replaced[name].shape)] if name in adapter.replaced else []
    )
    if name.endswith(".weight") and path in adapter.modules:
        shapes.append(adapter.modules[path].shape)
    for adapter_shape in shapes:
        if adapter_shape != shape:
            remedy = _remedy(name, adapter_shape, shape)
            raise MergeError(
                f"{adapter.folder}: {name} is {adapter_shape} in the adapter and {shape} in the "
                f"base; {remedy}"
            )


def _remedy(name: str, adapter_shape: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """Say what to do about shapes that differ: another number of rows is another vocabulary."""
    if len(shape) != 2 or adapter_shape[1:] != shape[1:] or not ("embed" in name or name == HEAD):
        return "name the base that it was trained on"
    return _resizing(adapter_shape[0])


def _resizing(rows: int) -> str:
    return (
        f"it was trained on a base whose vocabulary had been resized to {rows} rows. "
        f"Give the base as many before: model.resize_token_embeddings({rows}) in "
        "transformers, save_pretrained with the adapter's tokenizer, and name that folder as base"
    )


def _with_vocabulary(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return a config.json whose model has that many tokens."""
    parts = {
        name: _with_vocabulary(part, rows)
        for name, part in config.items()
        if name == "text_config" and isinstance(part, Mapping)
    }
    return {**config, **parts, **({"vocab_size": rows} if "vocab_size" in config else {})}


def _special_ids(adapter: Path) -> dict[str, Any]:
    """Return the eos and pad ids that the adapter was trained with, to replace the base's in
    config.json.
    """
    file = adapter / "generation_config.json"
    if not file.is_file():
        return {}
    generation = read_json(file)
    eos, pad = generation.get("eos_token_id"), generation.get("pad_token_id")
    ids = {"eos_token_id": eos[0] if isinstance(eos, list) else eos, "pad_token_id": pad}
    return {name: token for name, token in ids.items() if token is not None}
