"""Documents -> packed rows of at most `max_tokens`.

lengths 5 3 2 6, max_tokens 8
best_fit   [6 2] [5 3]        nothing is cut; a document goes where it leaves the least room
wrapped    [5 3] [2 6]        one long line, cut every 8 tokens; the rest goes on in the next row
none       [5] [3] [2] [6]
"""

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dualign.data.config import Packing
from dualign.data.seeds import Indices
from dualign.data.tokens.labels import IGNORE_INDEX
from dualign.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """Tokens `start`..`stop` of a document for each piece: all of it, except in wrapped packing.
    Row i has the pieces `offsets[i]`..`offsets[i + 1]`. Arrays, because there may be millions of
    them.
    """

    document: Indices
    start: Indices
    stop: Indices
    offsets: Indices


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedRows:
    """Columns of packed rows, each a list array of int32. `seq_lengths` and `groups` have an entry
    for each piece of a row.
    """

    input_ids: pa.ListArray
    labels: pa.ListArray
    seq_lengths: pa.ListArray
    groups: pa.ListArray


def pack(
    lengths: Indices, *, max_tokens: int, strategy: Packing, random: np.random.Generator
) -> Pieces:
    """Return the pieces of each packed row, for documents of `lengths` tokens.

    `random` shuffles the documents and the rows of best_fit; the other strategies keep the order.

    Raises:
        DataError: a document of more than `max_tokens`, unless packing is wrapped.
    """
    if strategy == "wrapped":
        return _wrapped(lengths, max_tokens)
    longest = int(lengths.max(initial=0))
    if longest > max_tokens:
        raise DataError(
            f"a document of {longest} tokens doesn't fit into rows of {max_tokens}. "
            "Drop it (data.too_long: drop), raise data.max_tokens, or use packing: wrapped."
        )
    if strategy == "none":
        numbers = np.arange(len(lengths), dtype=np.int32)
        return _whole(numbers, numbers, lengths)
    document, row = _best_fit(lengths, max_tokens, random)
    return _whole(document, row, lengths)


def _whole(document: Indices, row: Indices, lengths: Indices) -> Pieces:
    """Return whole documents as pieces, each in its row; documents of a row stay in order."""
    by_row = document[np.argsort(row, kind="stable")]
    return Pieces(
        document=by_row,
        start=np.broadcast_to(np.int32(0), by_row.shape),  # takes no memory
        stop=lengths[by_row],
        offsets=np.concatenate([[0], np.cumsum(np.bincount(row))]),
    )


def fill(
    pieces_per_row: Indices,
    cuts: Indices,
    input_ids: pa.ChunkedArray,
    labels: pa.ChunkedArray,
    groups: Indices,
) -> PackedRows:
    """Return the packed rows made of consecutive pieces.

    `cuts` are (start, stop) of each piece in its document [pieces, 2]; `input_ids`, `labels` and
    `groups` have the whole document of each piece, in order. The first label of a piece is ignored:
    the tokens before it in the row belong to another document.
    """
    documents = input_ids.combine_chunks()
    starts = documents.offsets.to_numpy()[:-1].astype(np.int64)
    spans = [slice(start, stop) for start, stop in (cuts + starts[:, None]).tolist()]
    lengths = cuts[:, 1] - cuts[:, 0]
    piece_offsets = np.concatenate([[0], np.cumsum(lengths)])
    row_offsets = np.concatenate([[0], np.cumsum(pieces_per_row)])
    ids = documents.values.to_numpy()
    document_labels = labels.combine_chunks().values.to_numpy()
    packed_labels = np.concatenate([document_labels[span] for span in spans])
    packed_labels[piece_offsets[:-1]] = IGNORE_INDEX
    token_offsets = piece_offsets[row_offsets]
    return PackedRows(
        input_ids=_lists(token_offsets, np.concatenate([ids[span] for span in spans])),
        labels=_lists(token_offsets, packed_labels),
        seq_lengths=_lists(row_offsets, lengths),
        groups=_lists(row_offsets, groups),
    )


def _lists(offsets: NDArray[np.int64], values: NDArray[Any]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values.astype(np.int32))


@dataclass(kw_only=True, slots=True)
class _OpenRows:
    """Rows that are being filled. `document` and `row` record the placements, in their order.

    Bit r of `rooms` is set if some row has room for exactly r more tokens, so the fullest row that
    takes a document is found by shifting and taking the lowest bit. Rows with room for 2, 5 and 9:
    rooms is 0b1000100100. A document of 4 shifts it to 0b100010, whose lowest bit is 1: the row
    with room for 5 takes it and has 1 left.
    """

    max_tokens: int
    document: "array[int]" = field(default_factory=lambda: array("i"))
    row: "array[int]" = field(default_factory=lambda: array("i"))
    count: int = 0
    with_room: dict[int, list[int]] = field(default_factory=dict)
    rooms: int = 0

    def room_left(self, length: int) -> int | None:
        """Return the room left in the fullest row that takes `length`; None if none takes it."""
        fitting = self.rooms >> length
        return (fitting & -fitting).bit_length() - 1 if fitting else None

    def place(self, document: int, length: int) -> None:
        """Put a document into the fullest row that takes it, or into a new one."""
        left = self.room_left(length)
        if left is None:
            left, row = self.max_tokens - length, self.count
            self.count += 1
        else:
            row = self.with_room[left + length].pop()
            if not self.with_room[left + length]:
                self.rooms ^= 1 << (left + length)
        self.document.append(document)
        self.row.append(row)
        self.with_room.setdefault(left, []).append(row)
        self.rooms |= 1 << left


def _best_fit(
    lengths: Indices, max_tokens: int, random: np.random.Generator
) -> tuple[Indices, Indices]:
    """Return documents in the order of placing, and the row of each, by best fit in random order.

    By decreasing length, the classic order, documents of one length share a row; where length goes
    with mode that is a row of one mode. Only documents longer than half a row, which can't share
    one with each other, are placed first. Of the next few of the others, one that fills a row goes
    before its turn: rows end up as full as in the classic order, to a fraction of a percent.
    """
    order = random.permutation(np.arange(len(lengths), dtype=np.int32))
    is_large = 2 * lengths[order] > max_tokens
    large, waiting = order[is_large], _as_array(order[~is_large][::-1])
    length_of = _as_array(lengths)
    rows = _OpenRows(max_tokens=max_tokens)
    for document in large[np.argsort(-lengths[large], kind="stable")].tolist():
        rows.place(document, length_of[document])
    while waiting:
        document = waiting.pop(_next(waiting, length_of, rows))
        rows.place(document, length_of[document])
    shuffled = np.argsort(random.permutation(rows.count)).astype(np.int32)
    return np.frombuffer(rows.document, dtype=np.int32), shuffled[rows.row]


def _as_array(numbers: Indices) -> "array[int]":
    """Convert to array.array: Python reads its single numbers much faster than numpy's, and a list
    takes eight times the memory.
    """
    return array("i", numbers.astype(np.int32).tobytes())


def _next(waiting: "array[int]", lengths: "array[int]", rows: _OpenRows) -> int:
    """Return the index in `waiting` (its end comes first) of the next document to place: among the
    next 16 the one that leaves the least room, if that is at most a hundredth of a row; else the
    first.

    Rows of 800 tokens, of which one has room for 300; documents of 100, 295 and 290 come next. The
    first would leave 200, the second 5, the third 10; a hundredth of a row is 8. So the second is
    placed. With documents of 100, 250 and 290 it is the first.
    """
    best, least = len(waiting) - 1, rows.max_tokens // 100 + 1
    for index in range(len(waiting) - 1, max(-1, len(waiting) - 17), -1):
        left = rows.room_left(lengths[waiting[index]])
        if left is not None and left < least:
            best, least = index, left
            if not left:
                break
    return best


def _wrapped(lengths: Indices, max_tokens: int) -> Pieces:
    """Cut the documents, as one line, at the end of each document and of each row."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    stops = np.union1d(ends[lengths > 0], np.arange(max_tokens, total, max_tokens))
    starts = np.concatenate([[0], stops[:-1]]).astype(np.int64)[: len(stops)]
    document = np.searchsorted(ends, starts, side="right")
    document_starts = (ends - lengths)[document]
    return Pieces(
        document=document,
        start=starts - document_starts,
        stop=stops - document_starts,
        offsets=np.concatenate([[0], np.cumsum(np.bincount(starts // max_tokens))]),
    )
