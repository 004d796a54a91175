"""Duplicate rows, exact and near.

Near duplicates are found by MinHash (arXiv 2107.06499 dedups training sets this way): rows whose
sets of word n-grams overlap by a share, estimated from 128 minima of hashes, which rensa makes.
Rows that agree on one of several bands of minima are compared, so the time is that of sorting, and
memory is a number for each row and band.
"""

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from dualign.data.config import DedupConfig
from dualign.data.conversation import Message, RatedAnswer
from dualign.data.mix.ngrams import HASH_BASE, Hashes, shingles, word_hashes
from dualign.data.rows.parser import Parsed, parts_of
from dualign.data.seeds import Indices
from dualign.errors import DataError

MINIMA = 128
_SEED = 1
_RUNS_IN: set[int] = set()  # ids of the processes in which rensa has started its threads
logger = logging.getLogger(__name__)
_CHANCE = 0.95
"""The chance that two rows of exactly the threshold are compared."""
_MOST_COMPARED = 100
"""Rows of a band that later ones are compared with. Rows made from one phrase all share bands, and
comparing all of them would take the square of their number.
"""
_BATCH = 10_000
_NOT_COMPARED = frozenset({"train", "cut", "tool_call_id"})
"""Fields of a turn that duplicates may differ in."""

Signatures = NDArray[np.uint32]
"""The minima of rows [R, MINIMA]."""


def digest(parsed: Parsed) -> bytes:
    """Return 16 bytes that two rows share if all is the same but white space and where they come
    from.
    """
    turns = [[_comparable(message) for message in part] for part in parts_of(parsed)]
    content: list[Any] = [parsed.mode, turns, list(parsed.tools), dict(parsed.template_kwargs)]
    if isinstance(parsed, RatedAnswer):
        content.append(parsed.desirable)
    return xxh3_128_digest(json.dumps(content, sort_keys=True, default=str).encode())


def _comparable(message: Message) -> dict[str, Any]:
    """Return what two equal turns share. The ids of calls are drawn anew for each copy of a row."""
    values = {entry.name: getattr(message, entry.name) for entry in fields(message)}
    values = {name: value for name, value in values.items() if name not in _NOT_COMPARED}
    values["content"] = " ".join(message.content.split())
    values["tool_calls"] = message.functions
    return values


def signatures(texts_of_rows: Sequence[Sequence[str]], ngram: int) -> list[bytes]:
    """Return the minima of each row's n-grams, as bytes."""
    return minhashes([_row_shingles(texts, ngram) for texts in texts_of_rows])


def _row_shingles(texts: Sequence[str], ngram: int) -> Hashes:
    """Return the n-grams of a row; of a row without words, such as emojis, the hash of its text."""
    text = "\n".join(texts)
    hashes = word_hashes(text)
    if len(hashes):
        return shingles(hashes, ngram)
    return np.array([xxh3_64_intdigest(text.encode())], dtype=np.uint64)


def minhashes(sets: Sequence[Hashes]) -> list[bytes]:
    """Return the minima of each set of hashes, as bytes."""
    offsets = np.cumsum([0, *map(len, sets)], dtype=np.uint64)
    flat = np.concatenate([*sets, np.empty(0, dtype=np.uint64)])
    _RUNS_IN.add(os.getpid())
    matrix = _rensa().RMinHash.digest_matrix_from_flat_token_hashes(
        flat, offsets, num_perm=MINIMA, seed=_SEED
    )
    return [np.array(row, dtype=np.uint32).tobytes() for row in matrix.to_rows()]


def worker_processes(dedup: DedupConfig | None, asked: int) -> int:
    """Return how many processes may fingerprint rows.

    rensa starts threads, which a fork doesn't take along: its processes would wait for them for ever.
    So once minima were made here, they are made here.
    """
    is_minhash = dedup is not None and dedup.method == "minhash"
    if asked > 1 and is_minhash and os.getpid() in _RUNS_IN:
        logger.info(
            "minhash ran in this process before, whose threads don't live in others: 1 process instead of %d",
            asked,
        )
        return 1
    return asked


def exact_duplicates(digests: Sequence[bytes]) -> Indices:
    """Return for each row the first row with its digest, or -1 for the first itself."""
    values = np.frombuffer(b"".join(digests), dtype="V16")
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return np.where(first[inverse] == np.arange(len(values)), -1, first[inverse])


def near_duplicates(
    count: int,
    read: Callable[[Indices], Signatures],
    is_think: NDArray[np.bool_],
    dedup: DedupConfig,
) -> Indices:
    """Return for each of `count` rows the earlier row that it is a near duplicate of, or -1.

    `read(rows)` returns signatures. Rows of different modes aren't duplicates of each other.
    """
    bands = [
        band_hashes(read(np.arange(start, min(start + _BATCH, count))), dedup.threshold)
        for start in range(0, count, _BATCH)
    ]
    if not bands:
        return np.empty(0, dtype=np.int64)
    hashes = np.concatenate(bands)
    hashes[is_think] += np.uint64(1)  # modes are compared apart
    return first_alike(hashes, read, threshold=dedup.threshold)


def band_hashes(rows: Signatures, threshold: float) -> Hashes:
    """Return a hash for each row and band [R, bands]: rows that agree on one are worth comparing."""
    bands, width = bands_for(threshold)
    minima = rows[:, : bands * width].reshape(len(rows), bands, width).astype(np.uint64)
    hashes = np.zeros((len(rows), bands), dtype=np.uint64)
    for column in range(width):
        hashes = hashes * HASH_BASE + minima[:, :, column]
    return hashes


def bands_for(threshold: float) -> tuple[int, int]:
    """Return (bands, width): the widest bands that nearly always find two rows that overlap by the
    threshold.
    """
    for width in range(MINIMA, 1, -1):
        bands = MINIMA // width
        if 1 - (1 - threshold**width) ** bands >= _CHANCE:
            return bands, width
    return MINIMA, 1


def first_alike(bands: Hashes, read: Any, *, threshold: float) -> Indices:
    """Return for each row the earlier row that it is a near duplicate of, or -1. A row is compared
    with rows that stay, so the first of its kind stays.

    `bands` is [R, bands] as from `band_hashes`; `read(rows)` returns signatures.
    """
    buckets = _buckets(bands)
    shared = np.flatnonzero((buckets >= 0).any(axis=1))
    same_as = np.full(len(bands), -1, dtype=np.int64)
    if not len(shared):
        return same_as
    minima = read(shared)
    stay: dict[tuple[int, int], list[int]] = {}
    for index, row in enumerate(shared.tolist()):
        keys = [(band, bucket) for band, bucket in enumerate(buckets[row].tolist()) if bucket >= 0]
        others = sorted({other for key in keys for other in stay.get(key, ())})
        if others:
            alike = (minima[others] == minima[index]).mean(axis=1) >= threshold
            if alike.any():
                same_as[row] = shared[others[int(alike.argmax())]]
                continue
        for key in keys:
            if len(bucket_rows := stay.setdefault(key, [])) < _MOST_COMPARED:
                bucket_rows.append(index)
    return same_as


def _buckets(bands: Hashes) -> NDArray[np.int32]:
    """Return for each row and band a number that rows of the same hash share, or -1 for a row
    alone.
    """
    buckets = np.full(bands.shape, -1, dtype=np.int32)
    for band in range(bands.shape[1]):
        _, bucket, count = np.unique(bands[:, band], return_inverse=True, return_counts=True)
        buckets[:, band] = np.where(count[bucket] > 1, bucket, -1)
    return buckets


def _rensa() -> Any:
    try:
        import rensa
    except ImportError as error:
        raise DataError(
            "dedup: minhash needs the package rensa: pip install 'dualign[data]', or use method: exact"
        ) from error
    return rensa
