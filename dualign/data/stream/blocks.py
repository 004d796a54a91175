"""A block: so many rows of a stream, shuffled and packed together. A stream is one block after another.

All of a block follows from where it begins, so a checkpoint holds that and how many packed rows of
the block were trained on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dualign.data.config import DataConfig
from dualign.data.conversation import Group
from dualign.data.seeds import Indices
from dualign.data.stream.account import Account
from dualign.data.stream.rows import StreamRow
from dualign.data.tokens.packing import fill, pack
from dualign.errors import DataError

_COLUMNS = ("input_ids", "labels", "seq_lengths", "doc_groups")
_READ = 64
_MOST_TOKENS = 2**31 - 1
_LATER = "max_steps"
"""What rows are counted under that were read and whose turn didn't come."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Packed rows of a stream, which begin with its packed row `first`.

    `start` is the state before the block was made. `first_packed` is the packed row that each row of
    the block begins in. `account` counts all that was read until the block was made, without the
    block's own rows; of these, and of those that `wait` for a later block, it depends on how far
    training comes.
    """

    first: int
    start: Mapping[str, Any]
    rows: Sequence[StreamRow]
    labels: Sequence[str]
    packed: pa.Table
    first_packed: Indices
    account: Account
    wait: Mapping[Group, int]

    def __len__(self) -> int:
        return int(self.packed.num_rows)

    @property
    def stop(self) -> int:
        """The packed row after the last one."""
        return self.first + len(self)

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        return self.packed_rows(0)

    def packed_rows(self, start: int) -> Iterator[dict[str, list[int]]]:
        """Yield the packed rows from one on."""
        for offset in range(start, len(self), _READ):
            yield from self.packed.slice(offset, _READ).to_pylist()

    def account_at(self, count: int) -> Account:
        """Return the account when `count` packed rows of the block were trained on."""
        account = self.account.copy()
        for row, first in zip(self.rows, self.first_packed.tolist(), strict=True):
            group = (row.mode, self.labels[row.source])
            if first < count:
                add_example(account, group, row)
            elif not row.repeats:
                account.drop(group, _LATER)
        for group, rows in self.wait.items():
            account.drop(group, _LATER, rows)
        return account


def add_example(account: Account, group: Group, row: StreamRow) -> None:
    """Count a row that was trained on."""
    stats = account.of(group) if row.repeats else account.keep(group, row.repairs)
    stats.repeats += row.repeats
    stats.examples += 1
    stats.tokens += row.tokens
    stats.supervised += row.supervised
    stats.longest = max(stats.longest, row.tokens)


def pack_rows(
    rows: Sequence[StreamRow],
    groups: Sequence[int],
    data: DataConfig,
    random: np.random.Generator,
) -> tuple[pa.Table, Indices]:
    """Return packed rows with columns of `SFTData.train`, and the first packed row that each row is in.

    `groups` has a number for each row.

    Raises:
        DataError: a document doesn't fit into a row, or the rows have more tokens than Arrow counts.
    """
    counts = np.array([len(row.parts) for row in rows])
    lengths = np.concatenate([row.parts for row in rows])
    row_of_document = np.repeat(np.arange(len(rows)), counts)
    before = np.cumsum([0] + [row.tokens for row in rows])
    if before[-1] > _MOST_TOKENS:
        raise DataError(
            f"a block of {len(rows):,} rows has {before[-1]:,} tokens, and {_MOST_TOKENS:,} is the most: "
            "lower data.streaming.shuffle_buffer"
        )
    stops = np.cumsum(lengths) - before[row_of_document]
    pieces = pack(lengths, max_tokens=data.max_tokens, strategy=data.packing, random=random)
    rows_of_pieces = row_of_document[pieces.document]
    starts = (stops - lengths)[pieces.document]
    # Of each piece its own tokens: a long document that is wrapped has many.
    spans = [
        (rows[row], slice(start, stop))
        for row, start, stop in zip(
            rows_of_pieces.tolist(),
            (pieces.start + starts).tolist(),
            (pieces.stop + starts).tolist(),
            strict=True,
        )
    ]
    ids, labels = (
        pa.chunked_array([_lists([getattr(row, name)[span] for row, span in spans])])
        for name in ("input_ids", "labels")
    )
    sizes = pieces.stop - pieces.start
    packed = fill(
        np.diff(pieces.offsets),
        np.stack([np.zeros_like(sizes), sizes], axis=1),
        ids,
        labels,
        np.array(groups, dtype=np.int32)[rows_of_pieces],
    )
    numbers = np.repeat(np.arange(len(pieces.offsets) - 1), np.diff(pieces.offsets))
    first_packed = np.full(len(rows), len(numbers), dtype=np.int64)
    np.minimum.at(first_packed, rows_of_pieces, numbers)
    table = pa.Table.from_arrays(
        [packed.input_ids, packed.labels, packed.seq_lengths, packed.groups], names=list(_COLUMNS)
    )
    return table, first_packed


def _lists(arrays: Sequence[Any]) -> pa.ListArray:
    offsets = np.cumsum([0] + [len(array) for array in arrays]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), np.concatenate(arrays))
