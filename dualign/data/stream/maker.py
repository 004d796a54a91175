"""Makes the blocks of a stream, one after the other, from where the stream is."""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from dualign.data.conversation import Group
from dualign.data.mix.switching import PromptSettings, check_switch
from dualign.data.request import DataRequest
from dualign.data.seeds import rng
from dualign.data.stream.account import Account
from dualign.data.stream.blocks import Block, add_example, pack_rows
from dualign.data.stream.mixing import Choice, Mixing
from dualign.data.stream.reader import Reader
from dualign.data.stream.rows import ChunkEncoder, StreamRow
from dualign.errors import DataError

_WAITING = 1024
"""Rows of a source and mode that wait for their turn; older ones are left out (`mix`)."""
_PATIENCE = 100_000
"""Rows read without one of the mode that is wanted, after which the source counts as having none."""
_SETTINGS = 10_000
"""Ways of asking that are remembered to compare modes."""


@dataclass(kw_only=True)
class BlockMaker:
    """The state of a stream between two blocks. `readers` and `encoders` are those of the sources that
    are trained on; `groups` numbers (mode, source).
    """

    request: DataRequest
    labels: Sequence[str]
    readers: Sequence[Reader]
    encoders: Sequence[ChunkEncoder]
    mixing: Mixing
    groups: Mapping[Group, int]
    account: Account
    size: int
    number: int = 0
    first: int = 0
    waiting: dict[Choice, deque[StreamRow]] = field(default_factory=dict)
    settings: PromptSettings = field(default_factory=PromptSettings)

    def make(self) -> Block:
        """Return the next block.

        Raises:
            DataError, RowError, TemplateError: as `prepare_sft`, of the rows that were read.
        """
        start = self._snapshot()
        rows = self._draw()
        random = rng(self.request.seed, f"block {self.number}", self.readers[0].rank.index)
        rows = [rows[index] for index in random.permutation(len(rows)).tolist()]
        self._check_switch(rows)
        groups = [self.groups[row.mode, self.labels[row.source]] for row in rows]
        packed, first_packed = pack_rows(rows, groups, self.request.data, random)
        wait = Counter(
            (row.mode, self.labels[row.source])
            for queue in self.waiting.values()
            for row in queue
            if not row.repeats
        )
        block = Block(
            first=self.first,
            start=start,
            rows=rows,
            labels=self.labels,
            packed=packed,
            first_packed=first_packed,
            account=self.account.copy(),
            wait=wait,
        )
        for row in rows:
            add_example(self.account, (row.mode, self.labels[row.source]), row)
        self.number, self.first = self.number + 1, self.first + len(block)
        return block

    def go_to(self, state: Mapping[str, Any]) -> None:
        """Make the block again that began with a state of `saved_state`."""
        self.number, self.first = state["number"], state["first"]
        self.account = Account.from_state(state["account"])
        self.mixing.go_to(state["mixing"])
        for reader, place in zip(self.readers, state["places"], strict=True):
            reader.go_to(place)
        self.waiting = {}
        for entry in state["waiting"]:
            row = StreamRow.from_state(entry)
            key = row.source, self.mixing.key(row.mode, self.labels[row.source])
            self.waiting.setdefault(key, deque()).append(row)

    def _snapshot(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "first": self.first,
            "account": self.account.copy(),
            "mixing": deepcopy(self.mixing.state()),
            "places": [reader.state() for reader in self.readers],
            "waiting": [row for queue in self.waiting.values() for row in queue],
        }

    def _draw(self) -> list[StreamRow]:
        rows: list[StreamRow] = []
        while len(rows) < self.size:
            choice = self.mixing.next()
            row = self._next(choice)
            if row is None:
                self.mixing.dry.add(choice)
                continue
            self.mixing.count(choice, row.tokens)
            rows.append(row)
        return rows

    def _next(self, choice: Choice) -> StreamRow | None:
        """Return the next row of a source and mode; None if the source shows none."""
        source, seen = choice[0], 0
        queue = self.waiting.setdefault(choice, deque())
        reader, before = self.readers[source], self.readers[source].place.turn
        while not queue:
            if seen > _PATIENCE or reader.place.turn > before + 1:
                self._require_mode(choice)
                return None
            chunk = reader.read()
            seen += len(chunk.numbers) + chunk.unsampled
            label = self.labels[source]
            if not chunk.repeats:
                mode = self.request.data.sources[source].mode
                group = ("unknown" if mode == "row" else mode, label)
                self.account.drop(group, "weight", chunk.unsampled)
            for row in self.encoders[source].rows(chunk, self.account):
                self._wait(row, label)
        return queue.popleft()

    def _wait(self, row: StreamRow, label: str) -> None:
        """Let a row wait for its turn; what can't wait is counted."""
        mode = self.mixing.key(row.mode, label)
        late: StreamRow | None = row
        if self.mixing.modes[mode] > 0:
            queue = self.waiting.setdefault((row.source, mode), deque())
            queue.append(row)
            self.mixing.dry.discard((row.source, mode))
            late = queue.popleft() if len(queue) > _WAITING else None
        if late is not None and not late.repeats:
            self.account.drop((late.mode, label), "mix")

    def _require_mode(self, choice: Choice) -> None:
        """Raise DataError for a source without any row; one without a mode may have others."""
        source, mode = choice
        if not mode:
            lost = self.account.summary(self.labels)["dropped"]
            listed = ", ".join(f"{reason}: {count}" for reason, count in lost.items())
            raise DataError(
                f"source {self.labels[source]}: no row is left to train on. Left out: {listed}."
            )

    def _check_switch(self, rows: Sequence[StreamRow]) -> None:
        if self.request.any_modes or len(self.settings.first) > _SETTINGS:
            return
        for row in rows:
            self.settings.add(row.mode, row.setting, row.place)
        check_switch(self.settings, self.request.template)


def saved_state(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """Return a snapshot as JSON."""
    rows = [row.state() for row in snapshot["waiting"]]
    return {**snapshot, "account": snapshot["account"].state(), "waiting": rows}
