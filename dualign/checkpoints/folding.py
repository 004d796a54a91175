"""The weights of a base with an adapter folded in, block of rows by block of rows.

A tied head and embedding are one tensor in the base and stay one, unless the adapter changes only
one of them: then there are two, and the config says so.
"""

from collections.abc import Mapping, Sequence
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
from dualign.checkpoints.lora import Adapter, LoraModule, Rows, wide
from dualign.errors import MergeError

# Elements made at once. Larger products are shared out by BLAS among threads of its own, which fight
# with ours for the same processors: twice as many took twice the time.
_PIECE = 1 << 15


class AdaptedWeights:
    """The weights of a base with one adapter folded in.

    Changed tensors come as float64, the others as they are stored.
    """

    def __init__(self, base: Weights, adapter: Adapter) -> None:
        self.base = base
        self.adapter = adapter
        self.folders = (adapter.folder, *base.folders)
        self.files = (*base.files, adapter.file)
        self.config: Mapping[str, Any] = {**base.config, **_ends(adapter.folder)}
        self.entries: Mapping[str, Entry] = base.entries
        self._changed = changed_names(adapter)
        self._tied_embedding = embedding_name(base.entries) if is_tied(base) else None
        if self._tied_embedding and self._changed & {HEAD, self._tied_embedding}:
            self._settle_tied_pair(self._tied_embedding)
        self._require_known()

    def reader(self, name: str) -> Reader:
        """The tensor as stored, or folded as it is read, in blocks of whole rows.

        Raises:
            MergeError: a value isn't finite.
        """
        stored = self.base.reader(self._stored_as(name))
        if name not in self._changed:
            return stored
        columns = _columns(self.base.entries[self._stored_as(name)].shape)
        made: list[Rows] = []

        def read(start: int, stop: int) -> Array:
            if not made:
                made.append(self._rows(name, stored))
            first, last = start // columns, -(-stop // columns)
            parts = [made[0](row, min(row + rows, last)) for row in range(first, last, rows)]
            block = np.concatenate(parts).reshape(-1) if parts[1:] else parts[0].reshape(-1)
            self._require_finite(block, name)
            return block[start - first * columns : stop - first * columns]

        rows = max(_PIECE // columns, 1)
        return Reader(
            read,
            step=rows * columns,
            random_access=stored.random_access and not self._looks_first(name),
        )

    def _rows(self, name: str, stored: Reader) -> Rows:
        """What the adapter makes of the base's tensor. A replaced one may carry a low-rank change on top."""
        columns = _columns(self.base.entries[self._stored_as(name)].shape)

        def base(start: int, stop: int) -> Array:
            block = stored.read(start * columns, stop * columns)
            return block.astype(np.float64).reshape(stop - start, -1)

        if name in self.adapter.token_rows:
            return _with_rows(base, *self.adapter.token_rows[name])
        replaced = self.adapter.replaced.get(name)
        rows = base if replaced is None else _rows_of(replaced)
        module = self._module(name)
        return rows if module is None else module.apply(rows)

    def _module(self, name: str) -> LoraModule | None:
        return self.adapter.modules.get(name.removesuffix(".weight"))

    def _looks_first(self, name: str) -> bool:
        module = self._module(name)
        return module is not None and module.embedding and module.magnitude is not None

    def _require_finite(self, block: Array, name: str) -> None:
        if not np.isfinite(block.sum()) and not np.isfinite(block).all():
            raise MergeError(f"{self.adapter.file}: {name}, folded, holds NaN or infinite values")

    def _stored_as(self, name: str) -> str:
        return self._tied_embedding if name == HEAD and self._tied_embedding else name

    def _settle_tied_pair(self, embedding: str) -> None:
        """One tensor when head and embedding change alike; else two, and an untied config."""
        rows = self.adapter.token_rows
        if embedding in rows and HEAD not in self._changed:
            return  # PEFT gives the new rows to a tied head as well
        if embedding in rows and HEAD not in rows:
            raise MergeError(
                f"{self.adapter.folder}: trainable tokens and a change of the tied {HEAD}; "
                "use one of the two"
            )
        head = self.base.entries[embedding]
        for name in sorted(self._changed & {HEAD, embedding}):
            _require_fit(self.adapter, name, head.shape)
        if self._alike(embedding, HEAD):
            self._changed -= {HEAD}
            return
        self.entries = {**self.base.entries, HEAD: head}
        self.config = {**self.config, "tie_word_embeddings": False}

    def _alike(self, one: str, other: str) -> bool:
        first, second = self.reader(one), self.reader(other)
        size = self.base.entries[one].size
        step = first.step or second.step or _PIECE
        ranges = [(start, min(start + step, size)) for start in range(0, size, step)]
        return all(np.array_equal(first.read(*at), second.read(*at)) for at in ranges)

    def _require_known(self) -> None:
        unknown = sorted(self._changed - set(self.entries))
        if unknown:
            raise MergeError(
                f"{self.adapter.folder}: changes {unknown[0]}, which the base "
                f"{self.base.folders[0]} doesn't have; is it the base that the adapter was "
                "trained on?"
            )
        for name in self._changed:
            _require_fit(self.adapter, name, self.entries[name].shape)


def changed_names(adapter: Adapter) -> set[str]:
    """The tensors of the base that the adapter changes."""
    return {*adapter.replaced, *adapter.token_rows, *(f"{path}.weight" for path in adapter.modules)}


def _columns(shape: tuple[int, ...]) -> int:
    return max(prod(shape[1:]), 1)


def _rows_of(tensor: Tensor) -> Rows:
    return lambda start, stop: wide(tensor[start:stop])


def _with_rows(base: Rows, indices: Sequence[int], values: Tensor) -> Rows:
    """The base with some of its rows replaced; of an index that comes twice the last one counts."""
    place = {index: i for i, index in enumerate(indices)}

    def rows(start: int, stop: int) -> Array:
        block = base(start, stop)
        for index in range(start, stop):
            if index in place:
                block[index - start] = wide(values[place[index]])
        return block

    return rows


def _require_fit(adapter: Adapter, name: str, shape: tuple[int, ...]) -> None:
    path = name.removesuffix(".weight")
    found: list[tuple[int, ...]] = (
        [tuple(adapter.replaced[name].shape)] if name in adapter.replaced else []
    )
    if name.endswith(".weight") and path in adapter.modules:
        found.append(adapter.modules[path].shape)
    wrong = [one for one in found if one != shape]
    if wrong:
        raise MergeError(
            f"{adapter.folder}: {name} is {wrong[0]} in the adapter and {shape} in the base"
        )


def _ends(adapter: Path) -> dict[str, Any]:
    """The end and pad ids that the adapter was trained with, for config.json: a stage sets them, and the base's are of
    before.
    """
    file = adapter / "generation_config.json"
    if not file.is_file():
        return {}
    settings = read_json(file)
    ends, pad = settings.get("eos_token_id"), settings.get("pad_token_id")
    found = {"eos_token_id": ends[0] if isinstance(ends, list) else ends, "pad_token_id": pad}
    return {name: token for name, token in found.items() if token is not None}
