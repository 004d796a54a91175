"""A flat batch -> the part of it that one of several processes computes.

Attention is computed over the whole batch, a share of the heads in each process, so the segments stay
whole; all else is computed on each process' positions alone. T: tokens of the batch, S: of a part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from dualign.data.tokens.labels import IGNORE_INDEX

WHOLE = "whole"
"""The key under which a part has the batch that it is of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardCollator:
    """Features -> part `place` of `parts` of the batch that `collator` makes of them."""

    collator: Callable[[Sequence[Any]], dict[str, Any]]
    place: int
    parts: int

    def __call__(self, features: Sequence[Any]) -> dict[str, Any]:
        return _sequence_shard(self.collator(features), place=self.place, parts=self.parts)


def _sequence_shard(batch: dict[str, Any], *, place: int, parts: int) -> dict[str, Any]:
    """Return part `place` of `parts` of a flat batch, with labels that are shifted: [1, S].

    Labels are shifted before the cut, so the last position of a part predicts the first token of the
    next one. The batch is padded to a multiple of `parts` with a segment of its own and without labels.

    Five tokens in two parts:
        input_ids     1 2 3 4 5        1 2 3 | 4 5 0
        labels        - 2 3 4 5
        shift_labels  2 3 4 5 -        2 3 4 | 5 - -

    Args:
        batch: with `segments`; tensors [1, T] are cut, all else stays as it is.
    """
    shape = batch["input_ids"].shape
    tail = -shape[1] % parts
    whole = dict(batch)
    if "shift_labels" not in whole:
        whole["shift_labels"] = pad(whole.pop("labels")[:, 1:], (0, 1), value=IGNORE_INDEX)
    for name, values in whole.items():
        if isinstance(values, Tensor) and values.shape == shape:
            fill = IGNORE_INDEX if name == "shift_labels" else 0
            whole[name] = pad(values, (0, tail), value=fill)
    whole["segments"] = whole["segments"].padded(tail)
    whole["position_ids"] = whole["segments"].positions[None]
    tokens = (shape[1] + tail) // parts
    mine = slice(place * tokens, (place + 1) * tokens)
    shard = {
        name: values[:, mine].contiguous()
        if isinstance(values, Tensor) and values.shape == (1, tokens * parts)
        else values
        for name, values in whole.items()
    }
    return {**shard, WHOLE: whole}
