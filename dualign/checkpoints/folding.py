"""The weights of a base with an adapter folded in, tensor by tensor as the base is read.

A tied head and embedding are one tensor in the base and stay one, unless the adapter changes only
one of them: then there are two, and the config says so.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualign.checkpoints.checkpoint import (
    HEAD,
    Reader,
    Weights,
    embedding_name,
    is_tied,
    read_json,
    read_whole,
)
from dualign.checkpoints.header import Entry
from dualign.checkpoints.lora import Adapter, require_finite
from dualign.checkpoints.numbers import Array
from dualign.errors import MergeError


class Adapted:
    """The weights of a base with one adapter folded in.

    Changed tensors come as float32, the others as they are stored.
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
        """The tensor as stored, or folded: that is done once, for the whole tensor.

        Raises:
            MergeError: a value isn't finite.
        """
        if name not in self._changed:
            return self.base.reader(self._stored_as(name))
        folded: list[Array] = []

        def read(start: int, stop: int) -> Array:
            if not folded:
                folded.append(self._fold(name).reshape(-1).numpy())
            return folded[0][start:stop]

        return Reader(read, in_parts=False)

    def _fold(self, name: str) -> Tensor:
        weight = torch.from_numpy(read_whole(self.base, self._stored_as(name)))
        if name not in self._changed:
            return weight
        folded = fold_tensor(self.adapter, name, weight.float())
        require_finite(folded, name, self.adapter.file)
        return folded

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
        if torch.equal(self._fold(embedding), self._fold(HEAD)):
            self._changed -= {HEAD}
            return
        self.entries = {**self.base.entries, HEAD: head}
        self.config = {**self.config, "tie_word_embeddings": False}

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


def fold_tensor(adapter: Adapter, name: str, weight: Tensor) -> Tensor:
    """What the adapter makes of the base's tensor, float32.

    A replaced tensor may carry a low-rank change on top.
    """
    if name in adapter.token_rows:
        indices, rows = adapter.token_rows[name]
        return weight.float().index_copy(0, torch.tensor(indices), rows.float())
    weight = adapter.replaced.get(name, weight)
    module = adapter.modules.get(name.removesuffix(".weight"))
    return weight.float() if module is None else module.apply(weight)


def _require_fit(adapter: Adapter, name: str, shape: tuple[int, ...]) -> None:
    path = name.removesuffix(".weight")
    found: list[tuple[int, ...]] = (
        [tuple(adapter.replaced[name].shape)] if name in adapter.replaced else []
    )
    if name.endswith(".weight") and path in adapter.modules:
        module = adapter.modules[path]
        made = (module.B.shape[0], module.A.shape[1])
        found.append(made[::-1] if module.embedding else made)
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
