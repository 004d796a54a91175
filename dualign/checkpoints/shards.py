"""Writing a model folder: tensors in pieces into safetensors shards, and the files beside them.

A shard's header is planned from shapes and types, so every piece has its place in the file before
it is made. Pieces are made and written by several threads; which one makes a piece doesn't change
it. What is written is hashed and sent to the disk meanwhile. A shard gets its name when it is whole
and on the disk.
"""

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dualign.checkpoints.checkpoint import Weights, read_json
from dualign.checkpoints.dtypes import DTYPE_CODES, DTYPE_NAMES, NotFiniteError, from_float
from dualign.checkpoints.header import TensorSpec, write_header
from dualign.errors import CheckpointError, MergeError
from dualign.hashing import StreamingSha256, sha256

SHARD_BYTES = 2_000_000_000
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip
PIECE = 1 << 18  # elements made at once
_SHARE = 1 << 20  # elements that one thread makes before it looks for more work
_SENT = 64 << 20  # bytes after which the disk is asked to start


def tensor_specs(weights: Weights, dtype: str) -> list[TensorSpec]:
    """Every tensor of `weights` in the type asked for; `input` keeps the stored types."""
    return [
        TensorSpec(name, entry.shape, entry.dtype if dtype == "input" else DTYPE_CODES[dtype])
        for name, entry in weights.entries.items()
    ]


def write_weights(
    weights: Weights,
    out: Path,
    *,
    dtype: str = "input",
    shard_bytes: int = SHARD_BYTES,
    threads: int | None = None,
    resume: bool = False,
) -> dict[Path, str]:
    """Write `model.safetensors`, or shards of at most `shard_bytes` with an index.

    Returns the SHA-256 of each file. Each number is rounded once, to the type that is written.
    `resume` keeps the shards that an interrupted run of the same work has finished.

    Raises:
        MergeError: a value isn't finite, or overflows the type that is written.
        CheckpointError: the disk hasn't enough room, or an input can't be read.
    """
    keep_freed_blocks()
    planned = tensor_specs(weights, dtype)
    # Wide types first, so that every tensor starts on a multiple of its item size.
    shards = split(sorted(planned, key=lambda one: -one.nbytes // max(one.size, 1)), shard_bytes)
    names = shard_names(len(shards))
    _clear(out, keep=names if resume else [])
    files = dict(zip((out / name for name in names), shards, strict=True))
    left = sum(_bytes(shard) for file, shard in files.items() if not file.is_file())
    _require_room(out, left)
    total = _bytes(planned)
    with (
        ThreadPoolExecutor(threads or cpu_count()) as pool,
        progress(total, "writing", done=total - left) as bar,
    ):
        digests = {
            file: sha256(file)
            if file.is_file()
            else _write_shard(file, shard, weights, pool, bar.update)
            for file, shard in files.items()
        }
    if len(shards) > 1:
        weight_map = {
            one.name: name for name, shard in zip(names, shards, strict=True) for one in shard
        }
        _write_json(
            out / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
        )
    return digests


def progress(total: int, what: str, *, done: int = 0) -> "tqdm[Any]":
    """A bar in bytes, for what takes more than a second, where somebody looks."""
    return tqdm(
        total=total, initial=done, unit="B", unit_scale=True, desc=what, delay=1, disable=None
    )


def _bytes(tensors: Sequence[TensorSpec]) -> int:
    return sum(one.nbytes for one in tensors)


def cpu_count() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_blocks() -> None:
    """Let malloc reuse up to 64 MB of freed blocks instead of returning each to the kernel.

    Tensors are made in blocks of some hundred kilobytes. By default glibc returns every one and
    requests it again, and the kernel clears it each time: that took half of a merge's time.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_threshold, trim_threshold = -3, -1  # malloc.h
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 64 << 20)


def write_side_files(
    weights: Weights,
    out: Path,
    *,
    dtype: str,
    tokenizer: Weights | None = None,
    chat_template: str | None = None,
) -> None:
    """Write config.json, with the new type; copy tokenizer, template and generation settings.

    `tokenizer` is the model whose tokenizer is copied, if it isn't `weights`; `chat_template` is
    written in place of its template.
    """
    config = dict(weights.config)
    if dtype != "input":
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    _write_json(out / "config.json", config)
    for file in [
        *tokenizer_files(tokenizer or weights),
        *nearest_file(weights, "generation_config.json"),
    ]:
        shutil.copyfile(file, out / file.name)
    if chat_template is not None:
        (out / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


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


def split(tensors: Sequence[TensorSpec], shard_bytes: int) -> list[list[TensorSpec]]:
    """In order, a new shard when the next tensor wouldn't fit; a larger tensor has its own."""
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for one in tensors:
        if shards[-1] and size + one.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(one)
        size += one.nbytes
    return shards


def shard_names(count: int) -> list[str]:
    """What transformers calls them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


@dataclass(frozen=True, slots=True)
class _Share:
    """The elements [start, stop) of a tensor, for one thread, and the file's byte of element 0."""

    tensor: TensorSpec
    offset: int
    start: int
    stop: int
    step: int

    @property
    def bytes(self) -> tuple[int, int]:
        """Where they lie in the file."""
        width = self.tensor.nbytes // self.tensor.size
        return self.offset + self.start * width, self.offset + self.stop * width


def _write_shard(
    file: Path,
    shard: Sequence[TensorSpec],
    weights: Weights,
    pool: ThreadPoolExecutor,
    advance: Callable[[int], object],
) -> str:
    """Returns its SHA-256."""
    aside = file.with_name(f".{file.name}.part")
    header = write_header(shard)
    handle = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(handle, header, 0)
        digest = StreamingSha256(handle)
        digest.add(0, len(header))
        shares = _shares(shard, weights, len(header))
        work = [pool.submit(_write_share, handle, one, weights, file.name) for one in shares]
        try:
            for start, stop in _written(shares, work, handle):
                digest.add(start, stop)
                advance(stop - start)
        except BaseException:
            for one in work:
                one.cancel()
            for one in work:  # the file must not be closed under a thread that writes
                if not one.cancelled():
                    one.exception()
            raise
        os.fsync(handle)
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{aside}: can't be written: {error.strerror}") from None
    finally:
        os.close(handle)
    aside.rename(file)
    return digest.hexdigest()


def _written(
    shares: Sequence[_Share], work: Sequence[Future[None]], handle: int
) -> Iterator[tuple[int, int]]:
    """The file's bytes of each share, when they are there.

    The disk gets its part meanwhile, so that the last sync is short.
    """
    unsent, sending = 0, None
    with ThreadPoolExecutor(1) as disk:
        for share, done in zip(shares, work, strict=True):
            done.result()
            start, stop = share.bytes
            yield start, stop
            unsent += stop - start
            if unsent >= _SENT and (sending is None or sending.done()):
                if sending is not None:
                    sending.result()  # an error of the disk is told once
                sending, unsent = disk.submit(os.fsync, handle), 0
    if sending is not None:
        sending.result()


def _shares(shard: Sequence[TensorSpec], weights: Weights, offset: int) -> list[_Share]:
    """In the file's order. Tensors that one thread makes whole: the largest first, so that none is
    left with one at the end.
    """
    in_order: list[_Share] = []
    whole: list[_Share] = []
    for one in shard:
        reader = weights.reader(one.name)
        step = reader.step or PIECE
        length = max(_SHARE // step, 1) * step if reader.random_access else max(one.size, 1)
        found = in_order if reader.random_access else whole
        found += [
            _Share(one, offset, start, min(start + length, one.size), step)
            for start in range(0, one.size, length)
        ]
        offset += one.nbytes
    return sorted(whole, key=lambda share: share.start - share.stop) + in_order


def _write_share(handle: int, share: _Share, weights: Weights, shard: str) -> None:
    one, reader = share.tensor, weights.reader(share.tensor.name)
    width = one.nbytes // one.size
    for start in range(share.start, share.stop, share.step):
        values = reader.read(start, min(start + share.step, share.stop))
        try:
            stored = from_float(values, one.dtype)
        except NotFiniteError as error:
            raise MergeError(
                f"{shard}: {one.name} would hold {values[error.place]} at element "
                f"{start + error.place}, written as {DTYPE_NAMES[one.dtype]}; choose a wider dtype or "
                "smaller weights"
            ) from None
        _write_all(handle, stored.view("u1").data, share.offset + start * width)


def _write_all(handle: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written


def _clear(out: Path, *, keep: Sequence[str]) -> None:
    """Remove what an earlier attempt left; beside a new index it could be loaded."""
    for stale in [*out.glob("model*.safetensors*"), *out.glob(".model*.part")]:
        if stale.name not in keep:
            stale.unlink()


def _require_room(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if free < needed:
        raise CheckpointError(
            f"{out}: {needed / 1e9:.2f} GB to write, {free / 1e9:.2f} GB free; make room first"
        )


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
