"""Packed rows -> batch. T: tokens of all rows of the batch.

The batch of packed rows is one flat row without an attention mask. Documents are kept apart by
segments, for attention by document, else by position_ids that start again at 0: transformers builds
the block mask from them, but only when no mask is given. With a mask of ones it silently lets
documents see each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from dualign.attention.segments import document_segments
from dualign.data.tokens.labels import IGNORE_INDEX
from dualign.errors import DataError

Features = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedCollator:
    """Rows with input_ids, labels, seq_lengths, doc_groups -> {input_ids, labels, position_ids,
    group_ids}, each [1, T].

    Two rows, of documents of 3 and 2 and of 2 tokens:
        position_ids  0 1 2 0 1 0 1
        group_ids     4 4 4 0 0 4 4      doc_groups [4, 0] and [4]: places in the caller's names
    """

    by_document: bool = False
    """put `segments` into the batch, for a model whose attention is dualign's"""

    def __call__(self, features: Features) -> dict[str, Any]:
        lengths = list(chain.from_iterable(row["seq_lengths"] for row in features))
        groups = list(chain.from_iterable(row["doc_groups"] for row in features))
        labels_T = _flat(features, "labels")
        starts = _starts(lengths, labels_T.numel())
        labels_T[starts] = IGNORE_INDEX
        segments = document_segments(lengths)
        groups_T = torch.repeat_interleave(torch.tensor(groups), torch.tensor(lengths))
        batch: dict[str, Any] = {
            "input_ids": _flat(features, "input_ids")[None],
            "labels": labels_T[None],
            "position_ids": segments.positions[None],
            "group_ids": groups_T[None],
        }
        return batch | ({"segments": segments} if self.by_document else {})


def _flat(features: Features, column: str) -> torch.Tensor:
    return torch.tensor(
        list(chain.from_iterable(row[column] for row in features)), dtype=torch.long
    )


def _starts(lengths: list[int], tokens: int) -> torch.Tensor:
    if sum(lengths) != tokens:
        raise DataError(
            f"packed rows of {tokens} tokens say that their documents have {sum(lengths)}: "
            "seq_lengths and labels must come from the same packing."
        )
    ends = torch.tensor(lengths).cumsum(0)
    return ends - torch.tensor(lengths)
