"""Preference pairs as a batch, in one of two layouts, and the log-probabilities of their answers.

shared: a pair is one document, and pairs lie flat one after the other. Prompt p1 p2 p3, chosen c1 c2
and rejected r1 make

    input_ids     p1 p2 | p3 c1 | p3        position_ids  0 1 | 2 3 | 2
    shift_labels   -  - | c1 c2 | r1

The prompt's last token begins both branches, so each position predicts one token at most. A branch
sees p1 p2 and itself (Wang and Hegde, arXiv 2410.20305). An answer's last token predicts nothing
that is scored, so it isn't there.

padded: a row for each answer with its prompt, padded on the right behind a mask; for models whose
layers can't share.

In both, answers follow in the order chosen, rejected of the first pair, chosen, rejected of the
second, ... A rated answer is laid out alike: a prompt with its answer and, for KTO's KL, with that of
another row. Shapes: P prompts, A answers of each, B rows, T positions, N labels of all answers.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from dualign.attention.function import ATTENTION
from dualign.attention.segments import branch_segments
from dualign.attention.support import unsupported
from dualign.data.tokens.labels import IGNORE_INDEX
from dualign.errors import ConfigError
from dualign.models.head import LabelScores

Layout = Literal["shared", "padded"]

MODEL_INPUTS = ("input_ids", "position_ids", "segments", "attention_mask", "shift_labels")
_REFERENCES = ("ref_chosen_logps", "ref_rejected_logps")
PAIR = ("chosen_ids", "rejected_ids")


@dataclass(frozen=True, kw_only=True, slots=True)
class PairCollator:
    """Rows with prompt_ids and `answers` -> what the model is called with, and
    `prompt_lengths` [P], `answer_lengths` [A P] as numbers; `group_ids`, `desirable` and the reference's
    log-probabilities [P] where the rows have them.
    """

    layout: Layout
    pad_token_id: int = 0
    answers: tuple[str, ...] = PAIR
    """the columns of the A answers to each prompt"""

    def __call__(self, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        answers = [[list(pair[name]) for name in self.answers] for pair in pairs]
        prompts = [list(pair["prompt_ids"]) for pair in pairs]
        batch = answer_batch(self.layout, prompts, answers, self.pad_token_id)
        if "group" in pairs[0]:
            batch["group_ids"] = torch.tensor([pair["group"] for pair in pairs])
        if "desirable" in pairs[0]:
            batch["desirable"] = torch.tensor([pair["desirable"] for pair in pairs])
        for name in _REFERENCES:
            if name in pairs[0]:
                # Numbers: under DeepSpeed the trainer gives tensors of fractions the weights' 16 bits.
                batch[name] = tuple(pair[name] for pair in pairs)
        return batch


def answer_batch(
    layout: Layout,
    prompts: Sequence[list[int]],
    answers: Sequence[Sequence[list[int]]],
    pad_token_id: int = 0,
) -> dict[str, Any]:
    """Lay out prompts, each with answers of its own, as many as it has; lengths as in `PairCollator`."""
    batch = (
        _shared(prompts, answers) if layout == "shared" else _padded(prompts, answers, pad_token_id)
    )
    batch["prompt_lengths"] = tuple(map(len, prompts))
    batch["answer_lengths"] = tuple(len(answer) for side in answers for answer in side)
    return batch


def _shared(prompts: Sequence[list[int]], answers: Sequence[Sequence[list[int]]]) -> dict[str, Any]:
    ids: list[list[int]] = []
    labels: list[list[int]] = []
    for (*prefix, last), answers_A in zip(prompts, answers, strict=True):
        ids += [prefix, *([last, *answer[:-1]] for answer in answers_A)]
        labels += [[IGNORE_INDEX] * len(prefix), *answers_A]
    segments = branch_segments(
        [len(prompt) - 1 for prompt in prompts],
        [[len(answer) for answer in answers_A] for answers_A in answers],
    )
    return {
        "input_ids": torch.tensor([list(chain.from_iterable(ids))]),
        "shift_labels": torch.tensor([list(chain.from_iterable(labels))]),
        "position_ids": segments.positions[None],
        "segments": segments,
    }


def _padded(
    prompts: Sequence[list[int]], answers: Sequence[Sequence[list[int]]], pad_token_id: int
) -> dict[str, Any]:
    ids, labels = [], []
    for prompt, answers_A in zip(prompts, answers, strict=True):
        for answer in answers_A:
            ids.append(torch.tensor([*prompt, *answer][:-1]))
            labels.append(torch.tensor([IGNORE_INDEX] * (len(prompt) - 1) + answer))
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_token_id),
        "shift_labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
    }


def pair_tokens(pair: Mapping[str, Any], layout: Layout, answers: Sequence[str] = PAIR) -> int:
    """Return the positions that a pair, or another row, takes in a batch, padding aside."""
    prompts = 1 if layout == "shared" else len(answers)
    return prompts * (len(pair["prompt_ids"]) - 1) + sum(len(pair[name]) for name in answers)


def pair_sizes(
    pairs: Iterable[Mapping[str, Any]],
    layout: Layout,
    *,
    most: int | None = None,
    answers: Sequence[str] = PAIR,
) -> list[int]:
    """Return the positions of each pair, or of each row with these answers.

    Raises:
        ConfigError: one has more than `most`, the recipe's batch_tokens.
    """
    sizes = [pair_tokens(pair, layout, answers) for pair in pairs]
    largest = max(sizes, default=0)
    if most is not None and largest > most:
        raise ConfigError(
            f"batch_tokens: the pair in place {sizes.index(largest)} has {largest} tokens, found a bound "
            f"of {most}; raise batch_tokens, or lower data.max_tokens"
        )
    return sizes


@contextmanager
def pair_layout(model: PreTrainedModel) -> Iterator[Layout]:
    """Yield the layout for a loaded model; while open, its attention is by document if that works."""
    if unsupported(model.config) is not None:
        yield "padded"
        return
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield "shared"
    finally:
        model.set_attn_implementation(before)


def label_values(scores: LabelScores, name: str = "log_probs") -> Tensor:
    """Return a figure of each label of a batch, in the order of the answers: [N]."""
    values_BT: Tensor = getattr(scores, name)
    return values_BT[scores.label_mask]


def answer_sums(values_N: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Return the sums over the labels of the first answers, of the second, ..., [P] each.

    Those of pairs are chosen and rejected.
    """
    # Sums of parts, not `index_add`, whose order of addition differs from run to run on a GPU.
    parts = torch.split(values_N, list(batch["answer_lengths"]))
    sums_PA = torch.stack([part.sum() for part in parts]).reshape(len(batch["prompt_lengths"]), -1)
    return sums_PA.unbind(dim=1)


def chosen_documents(batch: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the ids of each prompt and its first answer, without the last token."""
    count = len(batch["answer_lengths"]) // len(batch["prompt_lengths"])
    firsts = batch["answer_lengths"][::count]
    if "attention_mask" in batch:
        rows = zip(batch["input_ids"][::count], batch["prompt_lengths"], firsts, strict=True)
        for row_T, prompt, first in rows:
            yield row_T[: prompt - 1 + first]
        return
    start = 0
    for place, (prompt, first) in enumerate(zip(batch["prompt_lengths"], firsts, strict=True)):
        yield batch["input_ids"][0, start : start + prompt - 1 + first]
        start += prompt - 1 + sum(batch["answer_lengths"][place * count : (place + 1) * count])
