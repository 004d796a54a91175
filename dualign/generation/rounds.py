"""Generation in batches whose rows leave but don't join, by transformers' `generate`.

A batch is generated in rounds: a round stops once a quarter of its rows have ended; these leave the
batch and the cache, and the others continue. Shapes: B rows, T tokens.

Example, 8 rows that end after 2, 2, 5, 6, 6, 9, 9 and 9 tokens: the first round runs 2 steps and
drops 2 rows, the second 4 steps (6 rows, to token 6) and drops 3, the third 3 steps with 3 rows.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import LongTensor, Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from dualign.generation.row import MAX_ROWS, Row
from dualign.generation.sampling import Sampler


def by_rounds(
    model: PreTrainedModel, rows: Sequence[Row], settings: GenerationConfig, *, batch_tokens: int
) -> Iterator[list[Row]]:
    """Generate rows batch after batch; yield those that ended in each round."""
    for batch in batches(rows, batch_tokens=batch_tokens):
        yield from _Batch(batch, model, settings).generate()


def batches(rows: Sequence[Row], *, batch_tokens: int) -> Iterator[list[Row]]:
    """Yield batches, longest rows first: one too big for the memory fails at once."""
    order = sorted(rows, key=lambda row: (-row.longest, -len(row.prompt_ids), row.index))
    start = 0
    while start < len(order):
        count = max(1, min(batch_tokens // order[start].longest, MAX_ROWS))
        yield order[start : start + count]
        start += count


class _QuarterEnded(StoppingCriteria):
    """Give each row its token, and stop a round once a quarter of its rows have ended."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __call__(self, input_ids: LongTensor, scores: Any, **_: object) -> Tensor:
        for row, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
            if not row.ended:
                row.take(token)
        stop = sum(row.ended for row in self.rows) * 4 >= len(self.rows)
        return torch.full((len(self.rows),), stop, device=input_ids.device)


class _Batch:
    """One batch while it is generated."""

    def __init__(
        self, rows: Sequence[Row], model: PreTrainedModel, settings: GenerationConfig
    ) -> None:
        self.rows, self.model, self.settings = list(rows), model, settings
        ids = [row.prompt_ids for row in rows]
        self.length = max(map(len, ids))
        padded = [[settings.pad_token_id] * (self.length - len(row)) + list(row) for row in ids]
        masks = [[0] * (self.length - len(row)) + [1] * len(row) for row in ids]
        self.ids_BT = torch.tensor(padded, device=model.device)
        self.mask_BT = torch.tensor(masks, device=model.device)

    def generate(self) -> Iterator[list[Row]]:
        """Generate all rows; yield those that ended in each round."""
        cache = None
        while self.rows:
            settings = copy.deepcopy(self.settings)
            settings.max_new_tokens = max(
                row.sampling.max_new_tokens - len(row.new) for row in self.rows
            )
            output = self.model.generate(
                self.ids_BT,
                attention_mask=self.mask_BT,
                past_key_values=cache,
                generation_config=settings,
                logits_processor=LogitsProcessorList([self._sampler()]),
                stopping_criteria=StoppingCriteriaList([_QuarterEnded(self.rows)]),
            )
            yield [row for row in self.rows if row.ended]
            kept = [i for i, row in enumerate(self.rows) if not row.ended]
            self.rows, cache = [self.rows[i] for i in kept], output.past_key_values
            if kept:
                self._select(output.sequences, torch.tensor(kept, device=self.ids_BT.device))
                # Of states, too, as linear attention has; without a cache all is read again.
                if cache is not None:
                    cache.reorder_cache(torch.tensor(kept, device=self.ids_BT.device))

    def _sampler(self) -> Sampler:
        rows = self.rows
        return Sampler([row.sampling for row in rows], lambda: [row.draw() for row in rows])

    def _select(self, ids_BT: Tensor, kept: Tensor) -> None:
        """Continue with the rows that are kept alone, their new tokens appended."""
        added = ids_BT.shape[1] - self.mask_BT.shape[1]
        ones_BT = self.mask_BT.new_ones((len(self.mask_BT), added))
        self.mask_BT = torch.cat([self.mask_BT, ones_BT], dim=1)[kept]
        self.ids_BT = ids_BT[kept]
