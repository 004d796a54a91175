"""Gap between a folded model and the live one: a QLoRA adapter on its NF4 base.

Shapes: T tokens, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualign.errors import CheckpointError
from dualign.models.source import ModelSource

# Several kinds of questions; the next-token distributions are compared at every token of them.
PROMPTS = (
    "What is 17 times 24? Show the steps, then give the number.",
    "Write a Python function that returns the longest common prefix of a list of strings.",
    "Explain in two sentences why the sky is blue.",
    "A train leaves at 9:40 and arrives at 13:05. How long is the journey?",
    "Translate into French: The library closes at six, but the cafe stays open.",
    "List three arguments for and three against working from home.",
    "Who wrote Pride and Prejudice, and what is the book about?",
    "Rewrite this politely: Send me the report now.",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """Distances between the next-token distributions of two models, over all tokens of texts."""

    kl: float
    """the mean of KL(live || folded), in nats per token"""
    rms: float
    """the root mean square difference of a logit"""
    largest: float
    """the largest difference of a logit"""
    tokens: int


def gap_between(live: Sequence[Tensor], folded: Sequence[Tensor]) -> Gap:
    """Return the gap between logits [T, V] of the same texts.

    A shift of all logits of a token counts in `rms` and `largest`, not in `kl`.
    """
    tokens = sum(len(logits) for logits in live)
    kl = square = largest = 0.0
    for live_TV, folded_TV in zip(live, folded, strict=True):
        p_TV, q_TV = (logits.double().log_softmax(-1) for logits in (live_TV, folded_TV))
        kl += float((p_TV.exp() * (p_TV - q_TV)).sum())
        difference = (live_TV.double() - folded_TV.double()).abs()
        square += float(difference.square().sum())
        largest = max(largest, float(difference.max()))
    count = sum(logits.numel() for logits in live)
    return Gap(kl=kl / tokens, rms=math.sqrt(square / count), largest=largest, tokens=tokens)


def token_ids(folder: Path, prompts: Sequence[str]) -> list[Tensor]:
    """Tokenize each prompt as a user's turn; as plain text without a template in `folder`."""
    from transformers import AutoTokenizer

    if (
        not (folder / "tokenizer_config.json").is_file()
        and not (folder / "tokenizer.json").is_file()
    ):
        raise CheckpointError(
            f"{folder}: no tokenizer, so the gap to the live adapter can't be measured; use --no-gap and choose a base"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = list(prompts)
    if tokenizer.chat_template:
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts
        ]
    return [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]


def live_logits(base: Path, adapter: Path, ids: Sequence[Tensor], *, dtype: str) -> list[Tensor]:
    """Return the logits [T, V] of the adapter on its base in NF4, as it was trained, on the CPU."""
    from dualign.models.loading import nf4_options

    source = ModelSource(base=str(base), adapter=adapter)
    return _logits(source, ids, dtype=dtype, **nf4_options(dtype, "cpu"))


def folded_logits(folder: Path, ids: Sequence[Tensor], *, dtype: str) -> list[Tensor]:
    """Return the logits [T, V] of a model folder, on the CPU."""
    return _logits(ModelSource(base=str(folder)), ids, dtype=dtype)


def _logits(
    source: ModelSource, ids: Sequence[Tensor], *, dtype: str, **options: Any
) -> list[Tensor]:
    from dualign.models.loading import load_checkpoint
    from dualign.models.logits import logits_of

    model = load_checkpoint(source, dtype=getattr(torch, dtype), **options)
    return [logits_of(model, text_ids)[0] for text_ids in ids]
