"""How far one model is from another on answers that the first one gave.

For each token of an answer, KL(p || q) over the whole vocabulary, given the text before it. On
answers drawn from p at temperature 1 the mean is an unbiased estimate of the divergence of the
sequences per token; on greedy answers it is the divergence along those alone.
Shapes: B batch, T tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Scorer = Callable[[Sequence[int], int], "Tensor"]
"""(token ids, start) -> log-probabilities [T, V] that predict the tokens from `start` on"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenDivergences:
    """The tokens of one answer."""

    kl: tuple[float, ...]
    """KL(p || q) of each, in nats"""
    agreed: tuple[bool, ...]
    """both models have the same most likely token"""
    starts: tuple[int, ...]
    """the character of the answer where it starts; 0 by a tokenizer that doesn't know"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Divergence:
    """The mean over tokens of some answers."""

    kl: float | None
    """nats a token; None without tokens"""
    agreement: float | None
    """share of the tokens at which both models have the same most likely one"""
    tokens: int


def scorer(model: "PreTrainedModel") -> Scorer:
    """Return what gives the log-probabilities of a model in this process."""
    import torch

    def scores(ids: Sequence[int], start: int) -> "Tensor":
        with torch.no_grad():
            inputs_BT = torch.tensor([list(ids)], device=model.device)
            logits_BTV: Tensor = model(input_ids=inputs_BT, use_cache=False).logits
        return logits_BTV[0, start - 1 : -1].float().log_softmax(-1)

    return scores


def token_divergences(
    p: Scorer, q: Scorer, tokenizer: "PreTrainedTokenizerBase", prompt: str, answer: str
) -> TokenDivergences:
    """Return KL(p || q) at each token of an answer that p gave to a rendered prompt."""
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    places = tokenizer.is_fast
    read = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=places)
    answer_ids = read["input_ids"]
    if not answer_ids:
        return TokenDivergences(kl=(), agreed=(), starts=())
    p_TV, q_TV = (scores(prompt_ids + answer_ids, len(prompt_ids)) for scores in (p, q))
    q_TV = q_TV.to(p_TV.device)
    return TokenDivergences(
        kl=tuple((p_TV.exp() * (p_TV - q_TV)).sum(-1).tolist()),
        agreed=tuple((p_TV.argmax(-1) == q_TV.argmax(-1)).tolist()),
        starts=tuple(start for start, _ in read["offset_mapping"])
        if places
        else (0,) * len(answer_ids),
    )


def mean_divergence(tokens: Sequence[tuple[float, bool]]) -> Divergence:
    """Return the mean over tokens, each (KL, agreed)."""
    count = len(tokens)
    return Divergence(
        kl=math.fsum(kl for kl, _ in tokens) / count if count else None,
        agreement=sum(agreed for _, agreed in tokens) / count if count else None,
        tokens=count,
    )


def spread(rows: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Return `count` of the rows, evenly spread."""
    if len(rows) <= count:
        return [*rows]
    return [rows[i * len(rows) // count] for i in range(count)]
