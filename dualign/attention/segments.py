"""Which keys each position of a flat batch sees.

S: segments, T: positions of the batch, K: keys of all segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Segments:
    """Runs of queries, each with the run of keys that it sees.

    The segments' queries, one after the other, are the positions of the batch. A segment's last
    query sees all of its keys, the query before it all but the last, and so on.

    Two documents of 3 and 2 tokens, whose keys are their queries:
        query_lengths (3, 2)   key_lengths (3, 2)   key_index None   positions 0 1 2 0 1

    A prefix of 2 tokens (0 1) with branches of 2 (2 3) and 1 (4): a branch sees the prefix and itself.
        query_lengths (2, 2, 1)   key_lengths (2, 4, 3)
        key_index 0 1, 0 1 2 3, 0 1 4   positions 0 1 2 3 2
    """

    query_lengths: tuple[int, ...]
    """[S]"""
    key_lengths: tuple[int, ...]
    """[S]"""
    key_index: Tensor | None
    """the position of each key in the batch, [K]; None: keys are queries"""
    positions: Tensor
    """position_ids [T]"""

    def to(self, device: torch.device | str) -> "Segments":
        """Return the segments with their tensors on a device."""
        index = None if self.key_index is None else self.key_index.to(device)
        return Segments(
            query_lengths=self.query_lengths,
            key_lengths=self.key_lengths,
            key_index=index,
            positions=self.positions.to(device),
        )


def document_segments(lengths: Sequence[int]) -> Segments:
    """Return the segments of documents that lie one after the other."""
    positions_T = torch.cat([torch.arange(length) for length in lengths])
    return Segments(
        query_lengths=tuple(lengths),
        key_lengths=tuple(lengths),
        key_index=None,
        positions=positions_T,
    )


def branch_segments(
    prefix_lengths: Sequence[int], branch_lengths: Sequence[Sequence[int]]
) -> Segments:
    """Return the segments of documents that are a prefix and branches that go on from it.

    They lie in this order: a prefix, its branches, the next prefix, ... A prefix may be empty.
    """
    queries: list[int] = []
    keys: list[int] = []
    index: list[Tensor] = []
    positions: list[Tensor] = []
    start = 0
    for prefix, branches in zip(prefix_lengths, branch_lengths, strict=True):
        prefix_keys = torch.arange(start, start + prefix)
        if prefix:
            queries.append(prefix)
            keys.append(prefix)
            index.append(prefix_keys)
            positions.append(torch.arange(prefix))
        start += prefix
        for branch in branches:
            queries.append(branch)
            keys.append(prefix + branch)
            index += [prefix_keys, torch.arange(start, start + branch)]
            positions.append(torch.arange(prefix, prefix + branch))
            start += branch
    return Segments(
        query_lengths=tuple(queries),
        key_lengths=tuple(keys),
        key_index=torch.cat(index),
        positions=torch.cat(positions),
    )
