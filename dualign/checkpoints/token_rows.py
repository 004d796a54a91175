"""Rows of tokens that adapters trained: which they are, those of several adapters, and adapters without.

Shapes: T tokens, D features.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dualign.checkpoints.checkpoint import HEAD, read_json
from dualign.checkpoints.lora import BASE_OF_TOKENS, TOKENS, Adapter
from dualign.errors import MergeError
from dualign.rundir import write_json

TokenRows = Mapping[str, tuple[list[int], Tensor]]
"""module -> the rows that are replaced, and their values [T, D]"""


def last_token(config: Mapping[str, Any]) -> int:
    """Return the largest id of the tokens that an adapter_config.json lists as trained; -1 if none."""
    indices = config.get("trainable_token_indices") or ()
    lists = indices.values() if isinstance(indices, Mapping) else [indices]
    return max((index for ids in lists for index in ids), default=-1)


def joined_rows(adapters: Sequence[Adapter], *, remedy: str) -> TokenRows:
    """Return the rows that adapters replace.

    Raises:
        MergeError: two adapters replace one row.
    """
    rows: dict[str, tuple[list[int], Tensor]] = {}
    for adapter in adapters:
        for name, (indices, values) in adapter.token_rows.items():
            path = name.removesuffix(".weight")
            if path not in rows:
                rows[path] = list(indices), values
                continue
            before, others = rows[path]
            if twice := set(before) & set(indices):
                raise MergeError(
                    f"{adapter.folder}: token {min(twice)} is trained by another adapter as well; {remedy}"
                )
            rows[path] = [*before, *indices], torch.cat([others, values])
    return rows


def trainable_indices(
    rows: TokenRows, adapters: Sequence[Adapter]
) -> list[int] | dict[str, list[int]] | None:
    """Return PEFT's trainable_token_indices: a list for an embedding whose head is tied to it."""
    ids = {path: indices for path, (indices, _) in rows.items()}
    stated = [adapter.config.get("trainable_token_indices") for adapter in adapters]
    if len(ids) == 1 and not any(isinstance(indices, Mapping) for indices in stated):
        return next(iter(ids.values()))
    return ids or None


def leave_out_resized_base(folder: Path) -> None:
    """Rewrite an adapter's file without the base's whole matrices, which PEFT saves along with the
    rows of new tokens where the base was resized for them.
    """
    config = read_json(folder / "adapter_config.json")
    # Of a tied head PEFT then writes the rows again, which are the embedding's.
    again = (
        HEAD.removesuffix(".weight") + TOKENS
        if isinstance(config["trainable_token_indices"], list)
        else " "
    )
    _rewrite(folder, folder, config, without=(BASE_OF_TOKENS, again))


def write_without_rows(folder: Path, out: Path) -> None:
    """Write the adapter of `folder` without the rows of tokens that it trained."""
    config = {**read_json(folder / "adapter_config.json"), "trainable_token_indices": None}
    _rewrite(folder, out, config, without=(TOKENS,))


def _rewrite(folder: Path, out: Path, config: Mapping[str, Any], *, without: Sequence[str]) -> None:
    """Write an adapter to `out` without the tensors whose names hold one of the texts."""
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as tensors:
        names = [n for n in tensors.keys() if not any(text in n for text in without)]  # noqa: SIM118
        kept = {name: tensors.get_tensor(name) for name in names}
    file = out / "adapter_model.safetensors"
    save_file(kept, file.with_suffix(".half"), {"format": "pt"})  # they map the file itself
    file.with_suffix(".half").replace(file)
    write_json(out / "adapter_config.json", config)
