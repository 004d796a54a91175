"""Near duplicates by MinHash (arXiv 2107.06499 dedups training sets this way): rows whose sets of word
n-grams overlap by a share, estimated from 128 minima of hashes. rensa makes the minima.

Rows that agree on one of several bands of minima are compared; so the time is that of sorting, and
memory is a number for each row and band.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualign.data.mix.words import Hashes
from dualign.data.seeds import Indices
from dualign.errors import DataError

MINIMA = 128
_SEED = 1
_FOUND = 0.95
"""The chance that two rows of exactly the threshold are compared."""
_COMPARED = 100
"""Rows of a band that later ones are compared with. Rows made from one phrase all share bands, and
comparing all of them would take the square of their number.
"""
_BASE = np.uint64(0x9E3779B97F4A7C15)

Signatures = NDArray[np.uint32]


def signatures(sets: Sequence[Hashes]) -> list[bytes]:
    """The minima of each row's n-grams, as bytes."""
    ends = np.cumsum([0, *map(len, sets)], dtype=np.uint64)
    flat = np.concatenate([*sets, np.empty(0, dtype=np.uint64)])
    matrix = _rensa().RMinHash.digest_matrix_from_flat_token_hashes(
        flat, ends, num_perm=MINIMA, seed=_SEED
    )
    return [np.array(row, dtype=np.uint32).tobytes() for row in matrix.to_rows()]


def band_hashes(rows: Signatures, threshold: float) -> Hashes:
    """A number for each row and band: rows that agree on one are worth comparing."""
    bands, width = bands_for(threshold)
    cut = rows[:, : bands * width].reshape(len(rows), bands, width).astype(np.uint64)
    made = np.zeros((len(rows), bands), dtype=np.uint64)
    for place in range(width):
        made = made * _BASE + cut[:, :, place]
    return made


def bands_for(threshold: float) -> tuple[int, int]:
    """(bands, width): the widest bands that find two rows of the threshold's overlap nearly always."""
    for width in range(MINIMA, 1, -1):
        bands = MINIMA // width
        if 1 - (1 - threshold**width) ** bands >= _FOUND:
            return bands, width
    return MINIMA, 1


def first_alike(bands: Hashes, read: Any, *, threshold: float) -> Indices:
    """For each row the earlier row that it is a near duplicate of, or -1. A row is compared with rows
    that stay, so the first of its kind stays.

    `read(places)` gives signatures.
    """
    buckets = _buckets(bands)
    shared = np.flatnonzero((buckets >= 0).any(axis=1))
    found = np.full(len(bands), -1, dtype=np.int64)
    if not len(shared):
        return found
    minima = read(shared)
    stay: dict[tuple[int, int], list[int]] = {}
    for at, row in enumerate(shared.tolist()):
        keys = [(band, bucket) for band, bucket in enumerate(buckets[row].tolist()) if bucket >= 0]
        others = sorted({other for key in keys for other in stay.get(key, ())})
        if others:
            alike = (minima[others] == minima[at]).mean(axis=1) >= threshold
            if alike.any():
                found[row] = shared[others[int(alike.argmax())]]
                continue
        for key in keys:
            if len(known := stay.setdefault(key, [])) < _COMPARED:
                known.append(at)
    return found


def _buckets(bands: Hashes) -> NDArray[np.int32]:
    """For each row and band a number that rows of the same hash share, or -1 for a row alone."""
    made = np.full(bands.shape, -1, dtype=np.int32)
    for band in range(bands.shape[1]):
        _, bucket, count = np.unique(bands[:, band], return_inverse=True, return_counts=True)
        made[:, band] = np.where(count[bucket] > 1, bucket, -1)
    return made


def _rensa() -> Any:
    try:
        import rensa
    except ImportError as error:
        raise DataError(
            "dedup: minhash needs the package rensa: pip install 'dualign[data]', or use method: exact"
        ) from error
    return rensa
