"""Documents -> packed rows of at most `max_tokens`.

lengths 5 3 2 6, max_tokens 8
best_fit   [6 2] [5 3]        nothing is cut; a document goes where it leaves the least room
wrapped    [5 3] [2 6]        one long line, cut every 8 tokens; the rest goes on in the next row
none       [5] [3] [2] [6]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dualign.data.settings import Packing
from dualign.data.tokens import IGNORE_INDEX
from dualign.errors import DataError


class Piece(NamedTuple):
    """Tokens `start`..`stop` of a document; all of it, except in wrapped packing."""

    document: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedRow:
    """Pieces of documents behind one another; `seq_lengths` and `groups` have one entry for each
    piece.
    """

    input_ids: list[int]
    labels: list[int]
    seq_lengths: list[int]
    groups: list[int]


def pack(lengths: Sequence[int], *, max_tokens: int, strategy: Packing) -> list[list[Piece]]:
    """The pieces of each packed row, for documents of the given lengths."""
    if strategy == "wrapped":
        return _wrapped(lengths, max_tokens)
    longest = max(lengths, default=0)
    if longest > max_tokens:
        raise DataError(
            f"a document of {longest} tokens doesn't fit into rows of {max_tokens}. "
            "Drop it (data.too_long: drop), raise data.max_tokens, or use packing: wrapped."
        )
    rows = (
        _best_fit(lengths, max_tokens)
        if strategy == "best_fit"
        else [[i] for i in range(len(lengths))]
    )
    return [[Piece(which, 0, lengths[which]) for which in row] for row in rows]


def fill(
    pieces: Sequence[Piece],
    input_ids: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    groups: Sequence[int],
) -> PackedRow:
    """The packed row made of `pieces`; the other arguments have one entry for each of them.

    The first label of a piece is ignored: what stands before it in the row belongs to another
    document.
    """
    packed = PackedRow(input_ids=[], labels=[], seq_lengths=[], groups=list(groups))
    for piece, ids, marks in zip(pieces, input_ids, labels, strict=True):
        packed.input_ids.extend(ids[piece.start : piece.stop])
        packed.labels.extend([IGNORE_INDEX, *marks[piece.start + 1 : piece.stop]])
        packed.seq_lengths.append(piece.stop - piece.start)
    return packed


def _best_fit(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Best-fit decreasing. `open_rooms` has bit r set if some row has room for exactly r more
    tokens, so the row with the least room that suffices is found by shifting and taking the lowest
    bit.
    """
    rows: list[list[int]] = []
    rows_with_room: dict[int, list[int]] = {}
    open_rooms = 0
    for document in sorted(range(len(lengths)), key=lambda which: (-lengths[which], which)):
        length = lengths[document]
        fitting = open_rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                open_rooms ^= 1 << room
        else:
            room, row = max_tokens, len(rows)
            rows.append([])
        rows[row].append(document)
        left = room - length
        rows_with_room.setdefault(left, []).append(row)
        open_rooms |= 1 << left
    return rows


def _wrapped(lengths: Sequence[int], max_tokens: int) -> list[list[Piece]]:
    rows: list[list[Piece]] = []
    room = 0
    for document, length in enumerate(lengths):
        start = 0
        while start < length:
            if not room:
                rows.append([])
                room = max_tokens
            stop = min(length, start + room)
            rows[-1].append(Piece(document, start, stop))
            room -= stop - start
            start = stop
    return rows
