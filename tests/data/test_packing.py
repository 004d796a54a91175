"""Packing loses and cuts nothing it shouldn't, and wastes little."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualign.data.packing import Piece, fill, pack
from dualign.data.tokens import IGNORE_INDEX
from dualign.errors import DataError

lengths_up_to_64 = st.lists(st.integers(1, 64), max_size=80)


def test_the_example_of_the_docstring() -> None:
    def rows(strategy: str) -> list[list[tuple[int, int]]]:
        made = pack([5, 3, 2, 6], max_tokens=8, strategy=strategy)  # type: ignore[arg-type]
        return [[(piece.document, piece.stop - piece.start) for piece in row] for row in made]

    assert rows("best_fit") == [[(3, 6), (2, 2)], [(0, 5), (1, 3)]]
    assert rows("wrapped") == [[(0, 5), (1, 3)], [(2, 2), (3, 6)]]
    assert rows("none") == [[(0, 5)], [(1, 3)], [(2, 2)], [(3, 6)]]
    assert pack([5, 5], max_tokens=8, strategy="wrapped") == [
        [Piece(0, 0, 5), Piece(1, 0, 3)],
        [Piece(1, 3, 5)],
    ]


@given(lengths=lengths_up_to_64)
def test_best_fit_holds_each_document_once_and_whole(lengths: list[int]) -> None:
    rows = pack(lengths, max_tokens=64, strategy="best_fit")
    assert sorted(piece for row in rows for piece in row) == [
        Piece(which, 0, length) for which, length in enumerate(lengths)
    ]
    assert all(sum(piece.stop for piece in row) <= 64 for row in rows)


def slow_best_fit(lengths: list[int], max_tokens: int) -> list[int]:
    """The room left in each row when every document looks at every row."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [at for at, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda at: rooms[at])] -= length
        else:
            rooms.append(max_tokens - length)
    return sorted(rooms)


@given(lengths=lengths_up_to_64)
def test_best_fit_is_best_fit(lengths: list[int]) -> None:
    rows = pack(lengths, max_tokens=64, strategy="best_fit")
    assert sorted(64 - sum(piece.stop for piece in row) for row in rows) == slow_best_fit(
        lengths, 64
    )


@given(lengths=lengths_up_to_64, max_tokens=st.integers(2, 50))
def test_wrapped_rows_are_full_and_in_order(lengths: list[int], max_tokens: int) -> None:
    rows = pack(lengths, max_tokens=max_tokens, strategy="wrapped")
    line = [
        (piece.document, at)
        for row in rows
        for piece in row
        for at in range(piece.start, piece.stop)
    ]
    assert line == [(which, at) for which, length in enumerate(lengths) for at in range(length)]
    sizes = [sum(piece.stop - piece.start for piece in row) for row in rows]
    assert all(size == max_tokens for size in sizes[:-1])


def test_log_normal_lengths_are_packed_to_97_percent_and_in_time() -> None:
    draw = random.Random(0)
    lengths = [min(2048, max(8, int(draw.lognormvariate(5.5, 1.0)))) for _ in range(20_000)]
    rows = pack(lengths, max_tokens=2048, strategy="best_fit")
    assert sum(lengths) / (len(rows) * 2048) >= 0.97


def test_a_document_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(DataError, match="9 tokens doesn't fit into rows of 8"):
        pack([9], max_tokens=8, strategy="best_fit")
    assert len(pack([9], max_tokens=8, strategy="wrapped")) == 2


def test_the_first_label_of_a_piece_is_ignored() -> None:
    pieces = [Piece(0, 2, 4), Piece(1, 0, 2)]
    row = fill(pieces, [[1, 2, 3, 4], [5, 6]], [[1, 2, 3, 4], [5, 6]], [7, 8])
    assert row.input_ids == [3, 4, 5, 6]
    assert row.labels == [IGNORE_INDEX, 4, IGNORE_INDEX, 6]
    assert (row.seq_lengths, row.groups) == ([2, 2], [7, 8])
