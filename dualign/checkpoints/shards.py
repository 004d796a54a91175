"""Write a model folder: tensors in pieces into safetensors shards, and the files next to them.

A shard's header follows from shapes and types, so every piece has its place in the file before it
is computed. Several threads compute and write pieces; a piece doesn't depend on its thread. Hashing
and syncing go on meanwhile. A shard gets its final name once it is complete and on the disk.
"""

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.checkpoints.checkpoint import Weights, read_json
from dualign.checkpoints.dtypes import DTYPE_CODES, DTYPE_NAMES, NotFiniteError, from_float
from dualign.checkpoints.header import TensorSpec, write_header
from dualign.errors import CheckpointError, MergeError
from dualign.hashing import StreamingSha256, sha256
from dualign.terminal import progress

SHARD_BYTES = 2_000_000_000
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip
MORE_TEMPLATES = "additional_chat_templates"
"""transformers' folder of a tokenizer's named templates, besides chat_template.jinja."""
PIECE = 1 << 18  # elements computed at once
_SHARE = 1 << 20  # elements that a thread computes before it takes more work
_SYNC_BYTES = 64 << 20  # bytes after which a sync is started


def tensor_specs(weights: Weights, dtype: str) -> list[TensorSpec]:
    """List every tensor of `weights` in `dtype`; `input` keeps the stored types."""
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

    Each number is rounded once, to the written type.

    Args:
        resume: keep the shards that an interrupted run of the same work has finished.

    Returns:
        The SHA-256 of each file.

    Raises:
        MergeError: a value isn't finite, or overflows the written type.
        CheckpointError: the disk hasn't enough room, or an input can't be read.
    """
    keep_freed_blocks()
    specs = tensor_specs(weights, dtype)
    # Wide types first, so that every tensor starts on a multiple of its item size.
    shards = split(sorted(specs, key=lambda spec: -spec.nbytes // max(spec.size, 1)), shard_bytes)
    names = shard_names(len(shards))
    _clear(out, keep=names if resume else [])
    files = dict(zip((out / name for name in names), shards, strict=True))
    missing = sum(_bytes(shard) for file, shard in files.items() if not file.is_file())
    _require_room(out, missing)
    total = _bytes(specs)
    with (
        ThreadPoolExecutor(threads or cpu_count()) as pool,
        progress(total, "writing", done=total - missing) as bar,
    ):
        digests = {
            file: sha256(file)
            if file.is_file()
            else _write_shard(file, shard, weights, pool, bar.update)
            for file, shard in files.items()
        }
    if len(shards) > 1:
        weight_map = {
            spec.name: name for name, shard in zip(names, shards, strict=True) for spec in shard
        }
        _write_json(
            out / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
        )
    return digests


def _bytes(tensors: Sequence[TensorSpec]) -> int:
    return sum(spec.nbytes for spec in tensors)


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
    """Write config.json with the new type; copy tokenizer, template and generation_config.json.

    Args:
        tokenizer: the model whose tokenizer is copied; None: `weights`.
        chat_template: written in place of the tokenizer's.
    """
    config = dict(weights.config)
    if dtype != "input":
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    _write_json(out / "config.json", config)
    copied = tokenizer_files(tokenizer or weights)
    if chat_template is not None:  # the one template, for rows with tools as well
        copied = [file for file in copied if file.parent.name != MORE_TEMPLATES]
    copy_files([*copied, *nearest_file(weights, "generation_config.json")], out)
    if chat_template is not None:
        (out / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def tokenizer_files(weights: Weights) -> list[Path]:
    """List tokenizer and template files, all from the outermost folder with a tokenizer."""
    for folder in weights.folders:
        if any(
            (folder / name).is_file()
            for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
        ):
            names = [*TOKENIZER_FILES, *more_templates(folder)]
            return [folder / name for name in names if (folder / name).is_file()]
    return []


def more_templates(folder: Path) -> list[str]:
    """List a tokenizer's named templates by their paths in its folder."""
    return sorted(
        f"{MORE_TEMPLATES}/{file.name}" for file in (folder / MORE_TEMPLATES).glob("*.jinja")
    )


def copy_files(files: Iterable[Path], out: Path) -> None:
    """Copy files of a model's folder, named templates into their own."""
    for file in files:
        folder = out / MORE_TEMPLATES if file.parent.name == MORE_TEMPLATES else out
        folder.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / file.name)


def nearest_file(weights: Weights, name: str) -> list[Path]:
    """List the outermost file of that name; empty if no folder has one."""
    return [folder / name for folder in weights.folders if (folder / name).is_file()][:1]


def chat_template(weights: Weights) -> str | None:
    """Read the chat template from chat_template.jinja, else from tokenizer_config.json."""
    for file in tokenizer_files(weights):
        if file.name == "chat_template.jinja":
            return file.read_text(encoding="utf-8")
    for file in tokenizer_files(weights):
        if file.name == "tokenizer_config.json":
            return _default_template(read_json(file).get("chat_template"))
    return None


def _default_template(value: Any) -> str | None:
    """Return the template in tokenizer_config.json, of several the one named default."""
    if isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict)]
        texts = (entry.get("template") for entry in entries if entry.get("name") == "default")
        value = next(texts, None)
    return value if isinstance(value, str) else None


def split(tensors: Sequence[TensorSpec], shard_bytes: int) -> list[list[TensorSpec]]:
    """Fill shards in order; a tensor larger than `shard_bytes` gets a shard of its own."""
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in tensors:
        if shards[-1] and size + spec.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.nbytes
    return shards


def shard_names(count: int) -> list[str]:
    """Return the file names that transformers uses."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


@dataclass(frozen=True, slots=True)
class _Share:
    """Elements [start, stop) of a tensor, for one thread; element 0 is at `offset` in the file."""

    tensor: TensorSpec
    offset: int
    start: int
    stop: int
    step: int

    @property
    def bytes(self) -> tuple[int, int]:
        """First byte in the file, and the byte after the last."""
        width = self.tensor.nbytes // self.tensor.size
        return self.offset + self.start * width, self.offset + self.stop * width


def _write_shard(
    file: Path,
    shard: Sequence[TensorSpec],
    weights: Weights,
    pool: ThreadPoolExecutor,
    advance: Callable[[int], object],
) -> str:
    """Write one shard and return its SHA-256."""
    aside = file.with_name(f".{file.name}.part")
    header = write_header(shard)
    handle = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(handle, header, 0)
        digest = StreamingSha256(handle)
        digest.add(0, len(header))
        shares = _shares(shard, weights, len(header))
        futures = [pool.submit(_write_share, handle, share, weights, file.name) for share in shares]
        try:
            for start, stop in _written(shares, futures, handle):
                digest.add(start, stop)
                advance(stop - start)
        except BaseException:
            for future in futures:
                future.cancel()
            for future in futures:  # the file must not be closed under a thread that writes
                if not future.cancelled():
                    future.exception()
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
    shares: Sequence[_Share], futures: Sequence[Future[None]], handle: int
) -> Iterator[tuple[int, int]]:
    """Yield each share's bytes in the file once they are written.

    Syncs go on meanwhile in a thread of their own, so that the last one is short.
    """
    unsynced, sync = 0, None
    with ThreadPoolExecutor(1) as disk:
        for share, future in zip(shares, futures, strict=True):
            future.result()
            start, stop = share.bytes
            yield start, stop
            unsynced += stop - start
            if unsynced >= _SYNC_BYTES and (sync is None or sync.done()):
                if sync is not None:
                    sync.result()  # raises the disk's error
                sync, unsynced = disk.submit(os.fsync, handle), 0
    if sync is not None:
        sync.result()


def _shares(shard: Sequence[TensorSpec], weights: Weights, offset: int) -> list[_Share]:
    """Cut tensors into work for threads, in the file's order.

    A tensor without random access is one share. The largest of them go first, so that no thread is
    left with one at the end.

        a: 3M elements, random access -> a[0:1M] a[1M:2M] a[2M:3M]      order: c, b, a[0:1M], ...
        b, c: 2M and 5M, without      -> b[0:2M], c[0:5M]
    """
    parts: list[_Share] = []
    tensors: list[_Share] = []
    for spec in shard:
        reader = weights.reader(spec.name)
        step = reader.step or PIECE
        length = max(_SHARE // step, 1) * step if reader.random_access else max(spec.size, 1)
        shares = parts if reader.random_access else tensors
        shares += [
            _Share(spec, offset, start, min(start + length, spec.size), step)
            for start in range(0, spec.size, length)
        ]
        offset += spec.nbytes
    return sorted(tensors, key=lambda share: share.start - share.stop) + parts


def _write_share(handle: int, share: _Share, weights: Weights, shard: str) -> None:
    spec, reader = share.tensor, weights.reader(share.tensor.name)
    width = spec.nbytes // spec.size
    for start in range(share.start, share.stop, share.step):
        values = reader.read(start, min(start + share.step, share.stop))
        try:
            stored = from_float(values, spec.dtype)
        except NotFiniteError as error:
            raise MergeError(
                f"{shard}: {spec.name} would hold {values[error.place]} at element "
                f"{start + error.place}, written as {DTYPE_NAMES[spec.dtype]}; choose a wider dtype or "
                "smaller weights"
            ) from None
        _write_all(handle, stored.view("u1").data, share.offset + start * width)


def _write_all(handle: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written


def _clear(out: Path, *, keep: Sequence[str]) -> None:
    """Remove shards of an earlier attempt; next to a new index they could be loaded."""
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
