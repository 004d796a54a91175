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
second, ... Shapes: P pairs, B rows, T positions, N labels of all answers.
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
_ANSWERS = ("chosen_ids", "rejected_ids")


@dataclass(frozen=True, kw_only=True, slots=True)
class PairCollator:
    """Pairs with prompt_ids, chosen_ids, rejected_ids -> what the model is called with, and
    `prompt_lengths` [P], `answer_lengths` [2P] as numbers; `group_ids` and the reference's
    log-probabilities [P] where the pairs have them.
    """

    layout: Layout
    pad_token_id: int = 0

    def __call__(self, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = _shared(pairs) if self.layout == "shared" else _padded(pairs, self.pad_token_id)
        batch["prompt_lengths"] = tuple(len(pair["prompt_ids"]) for pair in pairs)
        batch["answer_lengths"] = tuple(len(pair[side]) for pair in pairs for side in _ANSWERS)
        if "group" in pairs[0]:
            batch["group_ids"] = torch.tensor([pair["group"] for pair in pairs])
        for name in _REFERENCES:
            if name in pairs[0]:
                batch[name] = torch.tensor([pair[name] for pair in pairs])
        return batch


def _shared(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ids: list[list[int]] = []
    labels: list[list[int]] = []
    for pair in pairs:
        *prefix, last = pair["prompt_ids"]
        answers = [list(pair[side]) for side in _ANSWERS]
        ids += [prefix, *([last, *answer[:-1]] for answer in answers)]
        labels += [[IGNORE_INDEX] * len(prefix), *answers]
    segments = branch_segments(
        [len(prefix) for prefix in ids[::3]],
        [
            (len(chosen), len(rejected))
            for chosen, rejected in zip(ids[1::3], ids[2::3], strict=True)
        ],
    )
    return {
        "input_ids": torch.tensor([list(chain.from_iterable(ids))]),
        "shift_labels": torch.tensor([list(chain.from_iterable(labels))]),
        "position_ids": segments.positions[None],
        "segments": segments,
    }


def _padded(pairs: Sequence[Mapping[str, Any]], pad_token_id: int) -> dict[str, Any]:
    ids, labels = [], []
    for pair in pairs:
        for side in _ANSWERS:
            ids.append(torch.tensor([*pair["prompt_ids"], *pair[side]][:-1]))
            prefix = [IGNORE_INDEX] * (len(pair["prompt_ids"]) - 1)
            labels.append(torch.tensor([*prefix, *pair[side]]))
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_token_id),
        "shift_labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
    }


def pair_tokens(pair: Mapping[str, Any], layout: Layout) -> int:
    """Return the positions that a pair takes in a batch, padding aside."""
    prompts = 1 if layout == "shared" else 2
    return prompts * (len(pair["prompt_ids"]) - 1) + sum(len(pair[side]) for side in _ANSWERS)


def pair_sizes(
    pairs: Iterable[Mapping[str, Any]], layout: Layout, *, most: int | None = None
) -> list[int]:
    """Return the positions of each pair.

    Raises:
        ConfigError: one has more than `most`, the recipe's batch_tokens.
    """
    sizes = [pair_tokens(pair, layout) for pair in pairs]
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


def answer_sums(values_N: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the sums over the labels of chosen and of rejected, [P] each."""
    # Sums of parts, not `index_add`, whose order of addition differs from run to run on a GPU.
    parts = torch.split(values_N, list(batch["answer_lengths"]))
    sums_P2 = torch.stack([part.sum() for part in parts]).reshape(-1, 2)
    return sums_P2[:, 0], sums_P2[:, 1]


def chosen_documents(batch: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the ids of each pair's prompt and chosen answer, without its last token."""
    lengths = zip(batch["prompt_lengths"], batch["answer_lengths"][::2], strict=True)
    if "attention_mask" in batch:
        for row_T, (prompt, chosen) in zip(batch["input_ids"][::2], lengths, strict=True):
            yield row_T[: prompt - 1 + chosen]
        return
    start = 0
    for (prompt, chosen), rejected in zip(lengths, batch["answer_lengths"][1::2], strict=True):
        yield batch["input_ids"][0, start : start + prompt - 1 + chosen]
        start += prompt - 1 + chosen + rejected
