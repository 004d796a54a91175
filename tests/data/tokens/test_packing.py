"""Packing loses and cuts nothing it shouldn't, and wastes little."""

import random
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualign.data.config import Packing
from dualign.data.tokens.labels import IGNORE_INDEX
from dualign.data.tokens.packing import fill, pack
from dualign.errors import DataError


class Piece(NamedTuple):
    document: int
    start: int
    stop: int


def packed(
    lengths: list[int], *, max_tokens: int, strategy: Packing, seed: int = 0
) -> list[list[Piece]]:
    draw = np.random.default_rng(seed)
    given = np.array(lengths, dtype=np.int64)
    made = pack(given, max_tokens=max_tokens, strategy=strategy, random=draw)
    columns = (made.document.tolist(), made.start.tolist(), made.stop.tolist())
    pieces = [Piece(*item) for item in zip(*columns, strict=True)]
    return [pieces[first:last] for first, last in pairwise(made.offsets.tolist())]


lengths_up_to_64 = st.lists(st.integers(1, 64), max_size=80)


def test_the_example_of_the_docstring() -> None:
    def rows(strategy: Packing) -> list[list[tuple[int, int]]]:
        made = packed([5, 3, 2, 6], max_tokens=8, strategy=strategy)
        return [[(piece.document, piece.stop - piece.start) for piece in row] for row in made]

    assert sorted(rows("best_fit"), reverse=True) == [[(3, 6), (2, 2)], [(0, 5), (1, 3)]]
    assert rows("wrapped") == [[(0, 5), (1, 3)], [(2, 2), (3, 6)]]
    assert rows("none") == [[(0, 5)], [(1, 3)], [(2, 2)], [(3, 6)]]
    assert packed([5, 5], max_tokens=8, strategy="wrapped") == [
        [Piece(0, 0, 5), Piece(1, 0, 3)],
        [Piece(1, 3, 5)],
    ]


@given(lengths=lengths_up_to_64)
def test_best_fit_holds_each_document_once_and_whole(lengths: list[int]) -> None:
    rows = packed(lengths, max_tokens=64, strategy="best_fit")
    assert sorted(piece for row in rows for piece in row) == [
        Piece(which, 0, length) for which, length in enumerate(lengths)
    ]
    assert all(sum(piece.stop for piece in row) <= 64 for row in rows)


@given(lengths=lengths_up_to_64)
def test_best_fit_opens_a_row_only_when_no_other_has_room(lengths: list[int]) -> None:
    rows = packed(lengths, max_tokens=64, strategy="best_fit")
    sizes = sorted(sum(piece.stop for piece in row) for row in rows)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > 64


def two_modes(count: int) -> tuple[list[int], list[str]]:
    """Short answers and longer traces, as long as those of the quickstart's problems."""
    draw = random.Random(0)
    modes = ["think" if draw.random() < 0.5 else "no_think" for _ in range(count)]
    return [
        draw.randint(70, 115) if mode == "think" else draw.randint(35, 75) for mode in modes
    ], modes


def test_a_row_holds_documents_of_both_modes_where_length_goes_with_mode() -> None:
    """By decreasing length half of these rows have one mode."""
    lengths, modes = two_modes(600)
    rows = packed(lengths, max_tokens=576, strategy="best_fit")
    one_mode = [row for row in rows if len({modes[piece.document] for piece in row}) == 1]
    assert len(one_mode) <= 0.05 * len(rows)
    assert sum(lengths) / (len(rows) * 576) >= 0.97


def test_the_seed_decides_what_is_packed_together() -> None:
    lengths, _ = two_modes(200)
    first, again, other = (
        packed(lengths, max_tokens=576, strategy="best_fit", seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other


@given(lengths=lengths_up_to_64, max_tokens=st.integers(2, 50))
def test_wrapped_rows_are_full_and_in_order(lengths: list[int], max_tokens: int) -> None:
    rows = packed(lengths, max_tokens=max_tokens, strategy="wrapped")
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
    rows = packed(lengths, max_tokens=2048, strategy="best_fit")
    assert sum(lengths) / (len(rows) * 2048) >= 0.97


def test_a_document_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(DataError, match="9 tokens doesn't fit into rows of 8"):
        packed([9], max_tokens=8, strategy="best_fit")
    assert len(packed([9], max_tokens=8, strategy="wrapped")) == 2


def test_the_first_label_of_a_piece_is_ignored() -> None:
    """Two rows: the end of one document with all of another, and the start of the first."""
    documents = pa.chunked_array([[[1, 2, 3, 4]], [[5, 6], [1, 2, 3, 4]]], pa.list_(pa.int32()))
    cuts = np.array([(2, 4), (0, 2), (0, 2)])
    packed = fill(np.array([2, 1]), cuts, documents, documents, np.array([7, 8, 7]))
    assert packed.input_ids.to_pylist() == [[3, 4, 5, 6], [1, 2]]
    assert packed.labels.to_pylist() == [
        [IGNORE_INDEX, 4, IGNORE_INDEX, 6],
        [IGNORE_INDEX, 2],
    ]
    assert packed.seq_lengths.to_pylist() == [[2, 2], [2]]
    assert packed.groups.to_pylist() == [[7, 8], [7]]
