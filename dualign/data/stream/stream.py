"""The stream that a trainer reads while it trains.

    sources -> their parts -> rows of this process, from a place on -> tokens -> waiting by mode
            -> drawn by shares -> blocks of `shuffle_buffer` rows, shuffled and packed -> trainer

The next block is made by a thread while training is in this one.
"""

import queue
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets

from dualign.data.conversation import Group
from dualign.data.stream.account import Account
from dualign.data.stream.blocks import Block
from dualign.data.stream.maker import BlockMaker, saved_state
from dualign.errors import DataError

_VERSION = 1


@dataclass(kw_only=True)
class RowStream:
    """The packed rows of one process, without an end, from the packed row `position` on."""

    maker: BlockMaker
    position: int = 0
    _blocks: "deque[Block]" = field(default_factory=deque)
    _next: "queue.Queue[Block | Exception] | None" = None
    _reads: bool = False

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        """Yield packed rows from `position` on.

        Raises:
            DataError, RowError, TemplateError: of rows that were read for the next block.
        """
        self._reads = True
        block = self._block(self.position)
        offset = self.position - block.first
        while True:
            yield from block.packed_rows(offset)
            block, offset = self._block(block.stop), 0

    def first_block(self) -> Block:
        """Return the block that the stream is in, which is made if it isn't there yet."""
        return self._block(self.position)

    def sample(self) -> datasets.IterableDataset:
        """Return the first packed row, for what looks at a row and counts none."""
        rows = datasets.Dataset.from_list([next(iter(self.first_block()))])
        return rows.to_iterable_dataset()

    def account(self, position: int) -> Account:
        """Return the account when so many packed rows were trained on."""
        block = self._block_before(position)
        return block.account_at(position - block.first)

    def state(self, position: int) -> dict[str, Any]:
        """Return, as JSON, where the stream is when so many packed rows were trained on."""
        block = self._block_before(position)
        rank = self.maker.readers[0].rank
        return {
            "version": _VERSION,
            "process": [rank.index, rank.count],
            "position": position,
            "block": saved_state(block.start),
        }

    def go_to(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned.

        Raises:
            DataError: it is the state of another process, or of another number of them.
        """
        rank = self.maker.readers[0].rank
        if state["version"] != _VERSION or state["process"] != [rank.index, rank.count]:
            index, count = state["process"]
            raise DataError(
                f"the checkpoint's stream is that of process {index + 1} of {count}, and this is process "
                f"{rank.index + 1} of {rank.count}: a stream goes on with as many processes. Start as "
                "many, or delete the stage's work folder to begin anew."
            )
        if self._next:
            self._next.get()  # nobody else may use the maker
        self._next = None
        self._blocks.clear()
        self.maker.go_to(state["block"])
        self.position = state["position"]

    def release(self, position: int) -> None:
        """Forget blocks all of whose packed rows were trained on."""
        while len(self._blocks) > 1 and self._blocks[0].stop < position:
            self._blocks.popleft()

    def _block_before(self, position: int) -> Block:
        """Return the block of the last packed row before a position."""
        self._block(max(self.position, position - 1))
        return next(
            block for block in self._blocks if block.first <= max(0, position - 1) < block.stop
        )

    def _block(self, position: int) -> Block:
        """Return the block that holds a packed row at or after the first block that is remembered."""
        for block in self._blocks:
            if block.first <= position < block.stop:
                return block
        while True:
            block = self._made()
            self._blocks.append(block)
            if position < block.stop:
                return block

    def _made(self) -> Block:
        """Return the next block; where rows are read, begin the one after it."""
        result = self._next.get() if self._next else self._attempt()
        self._next = None
        if isinstance(result, Exception):
            raise result
        if not self._reads:
            return result
        following: queue.Queue[Block | Exception] = queue.Queue(1)
        self._next = following
        # It ends with the process, wherever it is: nothing that it does lasts.
        threading.Thread(target=lambda: following.put(self._attempt()), daemon=True).start()
        return result

    def _attempt(self) -> Block | Exception:
        try:
            return self.maker.make()
        except Exception as error:  # it is raised where the rows are asked for
            return error


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamData:
    """A stream to train on, in place of SFTData's table.

    `validation` holds the first rows of each source, packed. `rows` is ROWS of run.json for the
    stream's first block.
    """

    train: RowStream
    validation: datasets.Dataset | None
    groups: tuple[Group, ...]
    labels: Sequence[str]
    records: Sequence[Mapping[str, Any]]
    """of each source: what run.json keeps of it beside its rows"""

    @property
    def rows(self) -> Mapping[str, Any]:
        block = self.train.first_block()
        return self.summary(block.account_at(len(block)))

    def summary(self, account: Account) -> dict[str, Any]:
        """Return ROWS of run.json for an account."""
        return account.summary(self.labels)

    def sources(self, account: Account) -> tuple[Mapping[str, Any], ...]:
        """Return what run.json says of the sources, with the rows that an account counts."""
        return tuple(
            {**record, "rows": account.total(label)}
            for record, label in zip(self.records, self.labels, strict=True)
        )
