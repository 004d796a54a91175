"""Which keys each position of a flat batch sees.

S: segments, T: positions of the batch, K: keys of all segments.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Segments:
    """Runs of queries, each with the run of keys that it sees.

    The segments' queries, one after the other, are the positions of the batch. A segment's last
    query sees all of its keys, the query before it all but the last, and so on.

    Two documents of 3 and 2 tokens, whose keys are their queries:
        query_lengths (3, 2)   key_lengths (3, 2)   key_segments ((0,), (1,))   positions 0 1 2 0 1

    A prefix of 2 tokens (0 1) with branches of 2 (2 3) and 1 (4): a branch sees the prefix and itself.
        query_lengths (2, 2, 1)   key_lengths (2, 4, 3)   key_segments ((0,), (0, 1), (0, 2))
        positions 0 1 2 3 2
    """

    query_lengths: tuple[int, ...]
    """[S]"""
    key_segments: tuple[tuple[int, ...], ...]
    """the segments whose positions are a segment's keys, itself last, [S]"""
    positions: Tensor
    """position_ids [T]"""
    _derived: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @property
    def tokens(self) -> int:
        """T"""
        return self.positions.numel()

    @property
    def key_lengths(self) -> tuple[int, ...]:
        """[S]"""
        return self.derive("key_lengths", self._key_lengths)

    @property
    def key_index(self) -> Tensor | None:
        """The position of each key in the batch, [K]; None: keys are queries."""
        return self.derive("key_index", self._key_index)

    @property
    def query_bounds(self) -> Tensor:
        """Where the queries of each segment start, and the last end, int32 [S + 1]."""
        return self.derive("query_bounds", lambda: _bounds(self.query_lengths, self.positions))

    @property
    def key_bounds(self) -> Tensor:
        """Where the keys of each segment start, and the last end, int32 [S + 1]."""
        return self.derive("key_bounds", lambda: _bounds(self.key_lengths, self.positions))

    def derive(self, name: Hashable, make: Callable[[], _Value]) -> _Value:
        """Return what `make` makes of these segments, made once for all layers."""
        if name not in self._derived:
            self._derived[name] = make()
        return cast("_Value", self._derived[name])

    def to(
        self, device: torch.device | str | int, non_blocking: bool = False
    ) -> "Segments":  # as Tensor.to
        """Return the segments with their tensors on a device."""
        return Segments(
            query_lengths=self.query_lengths,
            key_segments=self.key_segments,
            positions=self.positions.to(device, non_blocking=non_blocking),
        )

    def padded(self, tokens: int) -> "Segments":
        """Return the segments with one more behind them, of padding that nobody else sees."""
        if not tokens:
            return self
        return Segments(
            query_lengths=(*self.query_lengths, tokens),
            key_segments=(*self.key_segments, (len(self.key_segments),)),
            positions=torch.cat(
                [self.positions, torch.arange(tokens, device=self.positions.device)]
            ),
        )

    def _key_lengths(self) -> tuple[int, ...]:
        lengths = self.query_lengths
        return tuple(sum(lengths[part] for part in parts) for parts in self.key_segments)

    def _key_index(self) -> Tensor | None:
        if all(len(parts) == 1 for parts in self.key_segments):
            return None
        device = self.positions.device
        runs = torch.split(torch.arange(self.tokens, device=device), list(self.query_lengths))
        return torch.cat([runs[part] for part in chain.from_iterable(self.key_segments)])


def document_segments(lengths: Sequence[int]) -> Segments:
    """Return the segments of documents that lie one after the other."""
    return Segments(
        query_lengths=tuple(lengths),
        key_segments=tuple((segment,) for segment in range(len(lengths))),
        positions=torch.cat([torch.arange(length) for length in lengths]),
    )


def branch_segments(
    prefix_lengths: Sequence[int], branch_lengths: Sequence[Sequence[int]]
) -> Segments:
    """Return the segments of documents that are a prefix and branches that go on from it.

    They lie in this order: a prefix, its branches, the next prefix, ... A prefix may be empty.
    """
    queries: list[int] = []
    keys: list[tuple[int, ...]] = []
    positions: list[Tensor] = []
    for prefix, branches in zip(prefix_lengths, branch_lengths, strict=True):
        seen: tuple[int, ...] = (len(queries),) if prefix else ()
        if prefix:
            queries.append(prefix)
            keys.append(seen)
            positions.append(torch.arange(prefix))
        for branch in branches:
            keys.append((*seen, len(queries)))
            queries.append(branch)
            positions.append(torch.arange(prefix, prefix + branch))
    return Segments(
        query_lengths=tuple(queries),
        key_segments=tuple(keys),
        positions=torch.cat(positions),
    )


def _bounds(lengths: Sequence[int], like: Tensor) -> Tensor:
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return ends.to(like.device)
