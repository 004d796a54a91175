"""The rows of one source that one process reads: in passes over its parts, from any place on.

A pass takes the parts in an order drawn by the seed. Where the number of processes divides that of
the parts, each process has parts of its own; else each reads all parts and takes every n-th row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from xxhash import xxh3_64_intdigest

from dualign.data.seeds import rng
from dualign.data.stream.parts import Part, RawRows
from dualign.errors import DataError

_CHUNK = 256
"""Rows that are tokenized together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """Which of the `count` processes of a launch this is."""

    index: int = 0
    count: int = 1


@dataclass(kw_only=True, slots=True)
class Place:
    """Where reading goes on: the pass, the part as it comes in that pass, the row in the part."""

    turn: int = 0
    position: int = 0
    row: int = 0
    seen: int = 0
    """rows that this pass gave so far"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Rows of one part, with their numbers in it. `unsampled`: of them, rows that `weight` leaves out
    and that aren't here.
    """

    part: int
    numbers: list[int]
    raw: RawRows
    repeats: bool
    """an earlier pass gave these rows before"""
    unsampled: int

    def each(self) -> Iterator["Chunk"]:
        """Yield the rows one by one."""
        for index, number in enumerate(self.numbers):
            columns = {name: [values[index]] for name, values in self.raw.columns.items()}
            raw = replace(self.raw, columns=columns, count=1)
            yield replace(self, numbers=[number], raw=raw, unsampled=0)


@dataclass(kw_only=True)
class Reader:
    """Reads a source for ever: after its last row it begins again.

    `head` are the first rows, up to a row of a part, which training doesn't get.
    """

    label: str
    number: int
    parts: Sequence[Part]
    seed: int
    rank: Rank = field(default_factory=Rank)
    weight: float | None = None
    head: tuple[int, int] = (0, 0)
    shuffles: bool = True
    place: Place = field(default_factory=Place)
    _open: Iterator[RawRows] | None = None
    _drawn: tuple[int, list[int]] = (-1, [])

    def read(self) -> Chunk:
        """Return the next rows, at least one.

        Raises:
            DataError: a pass gave none.
        """
        while True:
            order = self._order()
            if self.place.position >= len(order):
                self._begin_again()
                continue
            part = order[self.place.position]
            if self._open is None:
                first = self.head[1] if part == self.head[0] else 0
                self.place.row = max(self.place.row, first)
                # Of chunks in which only every n-th row is taken, as many rows are left.
                size = _CHUNK * self._stride
                self._open = self.parts[part].batches(self.place.row, size)
            raw = next(self._open, None)
            if raw is None:
                self._open, self.place.row = None, 0
                self.place.position += 1
                continue
            start, self.place.row = self.place.row, self.place.row + raw.count
            chunk = self._chosen(part, start, raw)
            self.place.seen += len(chunk.numbers) + chunk.unsampled
            if chunk.numbers or chunk.unsampled:
                return chunk

    def go_to(self, place: Mapping[str, int]) -> None:
        """Read on from a place that `state` returned."""
        self.place, self._open = Place(**place), None

    def state(self) -> dict[str, int]:
        """Return where reading goes on."""
        return asdict(self.place)

    @property
    def _stride(self) -> int:
        return 1 if self._has_parts_of_its_own else self.rank.count

    @property
    def _has_parts_of_its_own(self) -> bool:
        return len(self.parts) % self.rank.count == 0

    def _order(self) -> list[int]:
        """Return the parts of this pass, without those that are all head."""
        turn, order = self._drawn
        if turn != self.place.turn:
            stream = f"parts of stream {self.number}"
            parts = np.arange(len(self.parts))
            if self.shuffles:
                parts = rng(self.seed, stream, self.place.turn).permutation(parts)
            if self._has_parts_of_its_own:
                parts = parts[parts % self.rank.count == self.rank.index]
            order = parts[parts >= self.head[0]].tolist()
            self._drawn = self.place.turn, order
        return order

    def _begin_again(self) -> None:
        if not self.place.seen:
            raise DataError(
                f"source {self.label}: holds no row for process {self.rank.index + 1} of "
                f"{self.rank.count} beside those that are held out"
            )
        self.place.position, self.place.seen = 0, 0
        self.place.turn += 1

    def _chosen(self, part: int, start: int, raw: RawRows) -> Chunk:
        numbers = range(start, start + raw.count)
        mine = [n for n in numbers if n % self._stride == self.rank.index % self._stride]
        taken = mine if self.weight is None else [n for n in mine if self._is_sampled(part, n)]
        if len(taken) < raw.count:
            columns = {
                name: [values[n - start] for n in taken] for name, values in raw.columns.items()
            }
            raw = RawRows(columns=columns, structs=raw.structs, count=len(taken))
        return Chunk(
            part=part,
            numbers=taken,
            raw=raw,
            repeats=self.place.turn > 0,
            unsampled=len(mine) - len(taken),
        )

    def _is_sampled(self, part: int, row: int) -> bool:
        key = f"{self.seed} {self.number} {part} {row}"
        return xxh3_64_intdigest(key.encode()) / 2**64 < (self.weight or 1)
