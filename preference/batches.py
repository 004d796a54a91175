"""Batches of pairs that are bounded by tokens instead of pairs."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class TokenBatches(Sampler[list[int]]):
    """Places of pairs in batches of at most `most_tokens`; in each epoch the same batches in another order.

    No pair alone is larger (`pair_sizes`).
    Their number is a multiple of `ranks`, so every rank takes the same number of steps: the largest
    batches are split for that. Which pairs share a batch is drawn once from `seed`.
    """

    def __init__(self, sizes: Sequence[int], most_tokens: int, *, ranks: int, seed: int) -> None:
        self._seed = seed
        self._epoch = 0
        order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).tolist()
        self._batches = _in_multiples(_filled(order, sizes, most_tokens), ranks)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        draw = torch.Generator().manual_seed(self._seed + self._epoch)
        for place in torch.randperm(len(self._batches), generator=draw).tolist():
            yield self._batches[place]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order is iterated next."""
        self._epoch = epoch


class EpochOrder(TrainerCallback):
    """Tells the batches which epoch begins; transformers doesn't when it resumes within one on several ranks."""

    def __init__(self, batches: TokenBatches) -> None:
        self._batches = batches

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._batches.set_epoch(int((state.epoch or 0) + 1e-6))


def _filled(order: Sequence[int], sizes: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Fill one batch after the other, in the given order."""
    batches: list[list[int]] = []
    room = 0
    for place in order:
        if sizes[place] > room:
            batches.append([])
            room = most_tokens
        batches[-1].append(place)
        room -= sizes[place]
    return batches


def _in_multiples(batches: list[list[int]], ranks: int) -> list[list[int]]:
    """Split the batches of most pairs until `ranks` divides their number, or each has one pair."""
    while len(batches) % ranks:
        largest = max(batches, key=len)
        if len(largest) == 1:
            break  # accelerate then gives some pairs to two ranks
        half = len(largest) // 2
        batches.append(largest[half:])
        del largest[half:]
    return batches
