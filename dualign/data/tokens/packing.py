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
    """Tokens `start`..`stop` of a document for each piece: all of it, except in wrapped packing. Row i
    has the pieces `ends[i]`..`ends[i + 1]`. Arrays, because there may be millions of them.
    """

    document: Indices
    start: Indices
    stop: Indices
    ends: Indices


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedRows:
    """Columns of packed rows, each a list array of int32. `seq_lengths` and `groups` have one entry
    for each piece of a row.
    """

    input_ids: pa.ListArray
    labels: pa.ListArray
    seq_lengths: pa.ListArray
    groups: pa.ListArray


def pack(
    lengths: Indices, *, max_tokens: int, strategy: Packing, random: np.random.Generator
) -> Pieces:
    """The pieces of each packed row, for documents of the given lengths. `random` draws which
    documents best_fit puts together, and the order of its rows; the others keep the given order.
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
        each = np.arange(len(lengths), dtype=np.int32)
        return _whole(each, each, lengths)
    document, row = _best_fit(lengths, max_tokens, random)
    return _whole(document, row, lengths)


def _whole(document: Indices, row: Indices, lengths: Indices) -> Pieces:
    """Whole documents, each in its row; documents of a row stay in the given order."""
    by_row = document[np.argsort(row, kind="stable")]
    return Pieces(
        document=by_row,
        start=np.broadcast_to(np.int32(0), by_row.shape),  # takes no memory
        stop=lengths[by_row],
        ends=np.concatenate([[0], np.cumsum(np.bincount(row))]),
    )


def fill(
    pieces_per_row: Indices,
    cuts: Indices,
    input_ids: pa.ChunkedArray,
    labels: pa.ChunkedArray,
    groups: Indices,
) -> PackedRows:
    """The packed rows made of consecutive pieces. `cuts` are (start, stop) of each piece in its
    document; the columns have the whole document of each piece, in order.

    The first label of a piece is ignored: what stands before it in the row belongs to another
    document.
    """
    documents = input_ids.combine_chunks()
    begins = documents.offsets.to_numpy()[:-1].astype(np.int64)
    spans = [slice(*one) for one in (cuts + begins[:, None]).tolist()]
    lengths = cuts[:, 1] - cuts[:, 0]
    piece_ends = np.concatenate([[0], np.cumsum(lengths)])
    row_ends = np.concatenate([[0], np.cumsum(pieces_per_row)])
    ids = documents.values.to_numpy()
    marks = labels.combine_chunks().values.to_numpy()
    packed_marks = np.concatenate([marks[span] for span in spans])
    packed_marks[piece_ends[:-1]] = IGNORE_INDEX
    tokens_of_row = piece_ends[row_ends]
    return PackedRows(
        input_ids=_lists(tokens_of_row, np.concatenate([ids[span] for span in spans])),
        labels=_lists(tokens_of_row, packed_marks),
        seq_lengths=_lists(row_ends, lengths),
        groups=_lists(row_ends, groups),
    )


def _lists(ends: NDArray[np.int64], values: NDArray[Any]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), values.astype(np.int32))


@dataclass(kw_only=True, slots=True)
class _OpenRows:
    """Rows that are being filled. `rooms` has bit r set if some row has room for exactly r more
    tokens, so the row with the least room that suffices is found by shifting and taking the lowest
    bit. `document` and `row` say what was placed where, in the order of placing.
    """

    max_tokens: int
    document: "array[int]" = field(default_factory=lambda: array("i"))
    row: "array[int]" = field(default_factory=lambda: array("i"))
    count: int = 0
    with_room: dict[int, list[int]] = field(default_factory=dict)
    rooms: int = 0

    def left_by(self, length: int) -> int | None:
        """The room that is left in the fullest row that takes `length`; None if none takes it."""
        fitting = self.rooms >> length
        return (fitting & -fitting).bit_length() - 1 if fitting else None

    def place(self, document: int, length: int) -> None:
        left = self.left_by(length)
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
    """Best fit, in random order: documents, and the row of each.

    By decreasing length, the classic order, documents of one length share a row; where length goes
    with mode that is a row of one mode. Here only documents that can't share a row with their like
    come first. Of the next few of the others, one that fills a row goes before its turn: rows end
    up as full as in the classic order, to a fraction of a percent.
    """
    order = random.permutation(np.arange(len(lengths), dtype=np.int32))
    large = 2 * lengths[order] > max_tokens
    halves, waiting = order[large], _plain(order[~large][::-1])
    length_of = _plain(lengths)
    made = _OpenRows(max_tokens=max_tokens)
    for document in halves[np.argsort(-lengths[halves], kind="stable")].tolist():
        made.place(document, length_of[document])
    while waiting:
        document = waiting.pop(_next(waiting, length_of, made))
        made.place(document, length_of[document])
    shuffled = np.argsort(random.permutation(made.count)).astype(np.int32)
    return np.frombuffer(made.document, dtype=np.int32), shuffled[made.row]


def _plain(numbers: Indices) -> "array[int]":
    """Python reads single numbers of an array much faster than of numpy's, and a list takes eight
    times the memory.
    """
    return array("i", numbers.astype(np.int32).tobytes())


def _next(waiting: "array[int]", lengths: "array[int]", made: _OpenRows) -> int:
    """The place in `waiting` (its end comes first) of the document to be placed: among the next 16
    the one that leaves the least room, if that is at most a hundredth of a row; else the first.
    """
    best, least = len(waiting) - 1, made.max_tokens // 100 + 1
    for at in range(len(waiting) - 1, max(-1, len(waiting) - 17), -1):
        left = made.left_by(lengths[waiting[at]])
        if left is not None and left < least:
            best, least = at, left
            if not left:
                break
    return best


def _wrapped(lengths: Indices, max_tokens: int) -> Pieces:
    """The documents as one line, cut at the end of each document and of each row."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    stops = np.union1d(ends[lengths > 0], np.arange(max_tokens, total, max_tokens))
    starts = np.concatenate([[0], stops[:-1]]).astype(np.int64)[: len(stops)]
    document = np.searchsorted(ends, starts, side="right")
    begins = (ends - lengths)[document]
    return Pieces(
        document=document,
        start=starts - begins,
        stop=stops - begins,
        ends=np.concatenate([[0], np.cumsum(np.bincount(starts // max_tokens))]),
    )
