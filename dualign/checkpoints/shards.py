"""Writing a model folder: tensors one by one into safetensors shards, and the files beside them.

A shard's header is planned from shapes and types before the first tensor is made, so each tensor
goes to disk as soon as it is there and memory holds one at a time.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dualign.checkpoints.checkpoint import DTYPES, Weights, read_json, require_finite
from dualign.errors import CheckpointError

SHARD_BYTES = 2_000_000_000
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def plan(weights: Weights, dtype: str) -> list[Planned]:
    """Every tensor of `weights` in the type asked for; `input` keeps the stored types."""
    chosen = None if dtype == "input" else getattr(torch, dtype)
    return [
        Planned(name, entry.shape, chosen or entry.dtype) for name, entry in weights.entries.items()
    ]


def write_tensors(
    out: Path,
    tensors: Sequence[Planned],
    make: Callable[[str], Tensor],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Write `model.safetensors`, or shards of at most `shard_bytes` with an index.

    `make` gives the tensor of a name in float32 or in the type that is written; the one rounding
    happens here.

    Raises:
        MergeError: a value overflows the type that is written.
        CheckpointError: the disk hasn't enough room.
    """
    total = sum(one.nbytes for one in tensors)
    for stale in out.glob("model*.safetensors*"):
        stale.unlink()  # of an interrupted attempt; beside a new index it could be loaded
    _require_room(out, total)
    # Wide types first, so that every tensor starts on a multiple of its item size.
    shards = _split(sorted(tensors, key=lambda one: -one.dtype.itemsize), shard_bytes)
    names = _shard_names(len(shards))
    with tqdm(
        total=total, unit="B", unit_scale=True, desc=f"writing {out.name}", disable=None
    ) as progress:
        for name, shard in zip(names, shards, strict=True):
            _write_shard(out / name, shard, make, progress.update)
    if len(shards) > 1:
        weight_map = {
            one.name: name for name, shard in zip(names, shards, strict=True) for one in shard
        }
        _write_json(
            out / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
        )
    return [out / name for name in names]


def write_side_files(weights: Weights, out: Path, *, dtype: str) -> None:
    """Write config.json, with the new type; copy tokenizer, template and generation settings."""
    config = dict(weights.config)
    if dtype != "input":
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    _write_json(out / "config.json", config)
    for file in [*tokenizer_files(weights), *nearest_file(weights, "generation_config.json")]:
        shutil.copyfile(file, out / file.name)


def tokenizer_files(weights: Weights) -> list[Path]:
    """The tokenizer and its template, all from one folder: the outermost that has a tokenizer."""
    for folder in weights.folders:
        if any(
            (folder / name).is_file()
            for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
        ):
            return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    return []


def nearest_file(weights: Weights, name: str) -> list[Path]:
    """The outermost folder's file of that name, or none."""
    return [folder / name for folder in weights.folders if (folder / name).is_file()][:1]


def chat_template(weights: Weights) -> str | None:
    """The template's text, wherever the tokenizer keeps it."""
    for file in tokenizer_files(weights):
        if file.name == "chat_template.jinja":
            return file.read_text(encoding="utf-8")
    for file in tokenizer_files(weights):
        if file.name == "tokenizer_config.json":
            return read_json(file).get("chat_template")
    return None


def _split(tensors: Sequence[Planned], shard_bytes: int) -> list[list[Planned]]:
    """In order, a new shard when the next tensor wouldn't fit; a larger tensor has its own."""
    shards: list[list[Planned]] = [[]]
    size = 0
    for one in tensors:
        if shards[-1] and size + one.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(one)
        size += one.nbytes
    return shards


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _write_shard(
    file: Path,
    shard: Sequence[Planned],
    make: Callable[[str], Tensor],
    advance: Callable[[int], object],
) -> None:
    with file.open("wb") as stream:
        stream.write(_header(shard))
        for one in shard:
            tensor = _rounded(make(one.name), one, file)
            stream.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            advance(one.nbytes)


def _rounded(tensor: Tensor, one: Planned, file: Path) -> Tensor:
    assert tuple(tensor.shape) == one.shape, (
        f"{one.name}: made {tuple(tensor.shape)}, planned {one.shape}"
    )
    rounded = tensor.to(one.dtype).contiguous()
    require_finite(rounded, one.name, f"{file.name}, written as {_CODES[one.dtype]}")
    return rounded


def _header(shard: Sequence[Planned]) -> bytes:
    """The length as 8 bytes, then JSON, padded so that the data starts on a multiple of 8."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    ends = list(accumulate(one.nbytes for one in shard))
    for one, end in zip(shard, ends, strict=True):
        span = [end - one.nbytes, end]
        header[one.name] = {
            "dtype": _CODES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": span,
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _require_room(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if free < needed:
        raise CheckpointError(
            f"{out}: {needed / 1e9:.2f} GB to write, {free / 1e9:.2f} GB free; make room first"
        )


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
