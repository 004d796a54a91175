"""Batched generation from rendered prompts.

transformers' `generate` keeps decoding a whole batch until its longest row ends. So each batch is
generated in parts: a part ends when a quarter of its rows have ended; those leave the batch and the
cache, and the rest goes on. Rows are batched by length. Shapes: B rows, T tokens, V vocabulary.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import LongTensor, Tensor
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from dualign.errors import EvaluationError
from dualign.generation.sampling import sampler, uniforms

BATCH_TOKENS = 32768
MAX_ROWS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """What followed a prompt: special tokens included, the token that ended the turn left out."""

    text: str
    token_ids: tuple[int, ...]
    finished: bool
    """the model ended its turn; False when the token limit cut it"""


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: str | None = None,
) -> list[Generation]:
    """One generation for each prompt, in the order of the prompts; see `generate_batches`."""
    batches = generate_batches(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        batch_tokens=batch_tokens,
        progress=progress,
    )
    made = {index: generation for batch in batches for index, generation in batch.items()}
    return [made[index] for index in range(len(prompts))]


@torch.inference_mode()
def generate_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: str | None = None,
) -> Iterator[dict[int, Generation]]:
    """Generations by the index of their prompt, batch after batch, as they are made.

    Args:
        prompts: rendered text; nothing is added to it, so the template has to hold the
            beginning-of-text token.
        temperature: 0 is greedy. Above 0, each row draws from its own seed, whatever it is batched
            with.
        seed: one for all (row i then draws from seed and i), or one for each prompt.
        batch_tokens: rows of a batch times (its longest prompt + max_new_tokens) is at most this.
        progress: the label of a progress bar; None shows none.
    """
    seeds = (
        [seed * 1_000_003 + i for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
    )
    ids = tokenized(tokenizer, prompts)
    settings = generation_settings(model, tokenizer, max_new_tokens=max_new_tokens)
    was_training = model.training
    model.eval()
    try:
        with tqdm(
            total=len(prompts), desc=progress, unit="answer", disable=progress is None
        ) as bar:
            for batch in _batches(ids, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens):
                rows = _Rows([ids[i] for i in batch], [seeds[i] for i in batch], model, settings)
                for made in rows.generate(temperature, top_p):
                    bar.update(made)
                yield {
                    index: _generation(tokenizer, new, settings)
                    for index, new in zip(batch, rows.new, strict=True)
                }
    finally:
        model.train(was_training)


def tokenized(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """The prompts' tokens, exactly as rendered."""
    if not prompts:
        return []
    ids: list[list[int]] = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    for index, row in enumerate(ids):
        if not row:
            raise EvaluationError(
                f"prompt {index} is empty; expected the text that the model is to continue"
            )
    return ids


def generation_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_new_tokens: int
) -> GenerationConfig:
    """Greedy, whatever the checkpoint's defaults; ends at any end token of model or tokenizer.

    Sampling is done by a logits processor (`sampler`), so that it doesn't depend on the batch.
    """
    ends = end_ids(model, tokenizer)
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=ends,
        # Which token pads makes no difference: padding is masked, and ended rows are cut at their
        # first end token.
        pad_token_id=pad if pad is not None else ends[0],
        bos_token_id=model.generation_config.bos_token_id,
        repetition_penalty=1.0,
        use_cache=True,
        return_dict_in_generate=True,
    )


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a turn: those of generation_config.json, and the tokenizer's."""
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    found = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None}
    if not found:
        raise EvaluationError(
            "neither generation_config.json nor the tokenizer names an end-of-turn token, so no answer would end; "
            "set eos_token_id in generation_config.json"
        )
    return sorted(int(i) for i in found if i is not None)


class _EnoughEnded(StoppingCriteria):
    """Ends a part when a quarter of its rows have ended, so that these can leave the batch."""

    def __init__(self, ends: Tensor, rows: int) -> None:
        self.ends = ends
        self.ended_B = torch.zeros(rows, dtype=torch.bool, device=ends.device)

    def __call__(self, input_ids: LongTensor, scores: Any, **_: object) -> Tensor:
        self.ended_B |= torch.isin(input_ids[:, -1], self.ends)
        return (self.ended_B.sum() * 4 >= len(self.ended_B)).expand(len(self.ended_B))


class _Rows:
    """The rows of one batch while they are generated; `new` holds each row's tokens."""

    def __init__(
        self,
        ids: Sequence[Sequence[int]],
        seeds: Sequence[int],
        model: PreTrainedModel,
        settings: GenerationConfig,
    ) -> None:
        self.model = model
        self.settings = settings
        self.limit: int = settings.max_new_tokens
        self.length = max(map(len, ids))
        self.new: list[list[int]] = [[] for _ in ids]
        self.ends = torch.tensor(settings.eos_token_id, device=model.device)
        padded = [[settings.pad_token_id] * (self.length - len(row)) + list(row) for row in ids]
        masks = [[0] * (self.length - len(row)) + [1] * len(row) for row in ids]
        self.ids_BT = torch.tensor(padded, device=model.device)
        self.mask_BT = torch.tensor(masks, device=model.device)
        self.seeds = seeds

    def generate(self, temperature: float, top_p: float) -> Iterator[int]:
        """Run to the end; yields how many rows ended in each part."""
        alive = torch.arange(len(self.new), device=self.ids_BT.device)
        uniforms_BT = uniforms(self.seeds, self.limit if temperature else 0).to(self.ids_BT.device)
        cache = None
        while len(alive) > 0:
            part = self.model.generate(
                self.ids_BT,
                attention_mask=self.mask_BT,
                past_key_values=cache,
                generation_config=self._settings_of_part(),
                logits_processor=sampler(temperature, top_p, uniforms_BT[alive], self.length),
                stopping_criteria=StoppingCriteriaList([_EnoughEnded(self.ends, len(alive))]),
            )
            going_B = self._keep(part.sequences, alive)
            yield int((~going_B).sum())
            kept = going_B.nonzero().squeeze(1)
            alive, cache = alive[kept], part.past_key_values
            if len(kept) > 0:
                cache.batch_select_indices(kept)
            self._narrow(part.sequences, kept)

    def _settings_of_part(self) -> GenerationConfig:
        settings = copy.deepcopy(self.settings)
        settings.max_new_tokens = self.limit - (self.ids_BT.shape[1] - self.length)
        return settings

    def _keep(self, ids_BT: Tensor, alive: Tensor) -> Tensor:
        """Note the new tokens of every row; True for the rows that go on."""
        new_BT = ids_BT[:, self.length :]
        for row, tokens in zip(alive.tolist(), new_BT.tolist(), strict=True):
            self.new[row] = tokens
        if new_BT.shape[1] >= self.limit:
            return torch.zeros(len(alive), dtype=torch.bool, device=ids_BT.device)
        return ~torch.isin(new_BT, self.ends).any(dim=1)

    def _narrow(self, ids_BT: Tensor, kept: Tensor) -> None:
        grown = ids_BT.shape[1] - self.mask_BT.shape[1]
        ones_BT = self.mask_BT.new_ones((len(self.mask_BT), grown))
        self.mask_BT = torch.cat([self.mask_BT, ones_BT], dim=1)[kept]
        self.ids_BT = ids_BT[kept]


def _batches(
    ids: Sequence[Sequence[int]], *, max_new_tokens: int, batch_tokens: int
) -> Iterator[list[int]]:
    """Indices of prompts, the longest first: a batch too big for the memory fails at once."""
    order = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i))
    start = 0
    while start < len(order):
        room = batch_tokens // (len(ids[order[start]]) + max_new_tokens)
        rows = max(1, min(room, MAX_ROWS))
        yield order[start : start + rows]
        start += rows


def _generation(
    tokenizer: PreTrainedTokenizerBase, new: Sequence[int], settings: GenerationConfig
) -> Generation:
    ends = set(settings.eos_token_id)
    stop = next((i for i, token in enumerate(new) if token in ends), None)
    ids = tuple(new[:stop])
    # Special tokens stay in the text: in some vocabularies the think tags are special.
    text = tokenizer.decode(ids, skip_special_tokens=False)
    return Generation(text=str(text), token_ids=ids, finished=stop is not None)
