"""Batched generation from rendered prompts.

transformers' `generate` decodes a whole batch until its longest row ends. So each batch is
generated in rounds: a round stops once a quarter of its rows have ended; these leave the batch and
the cache, and the others continue. Rows are batched by length. Shapes: B rows, T tokens.

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
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from dualign.errors import EvaluationError
from dualign.generation.answers import Generation
from dualign.generation.sampling import Sampling, sampler, uniforms
from dualign.models.tokenizer import eos_token_ids
from dualign.terminal import progress

_BATCH_TOKENS = 32768
_MAX_ROWS = 256


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    sampling: Sampling,
    seed: int | Sequence[int] = 0,
    *,
    batch_tokens: int = _BATCH_TOKENS,
    label: str | None = None,
) -> list[Generation]:
    """Return one generation for each prompt, in their order; arguments as in `generate_batches`."""
    batches = generate_batches(
        model, tokenizer, prompts, sampling, seed, batch_tokens=batch_tokens, label=label
    )
    by_index = {index: generation for batch in batches for index, generation in batch.items()}
    return [by_index[index] for index in range(len(prompts))]


@torch.inference_mode()
def generate_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    sampling: Sampling,
    seed: int | Sequence[int] = 0,
    *,
    batch_tokens: int = _BATCH_TOKENS,
    label: str | None = None,
) -> Iterator[dict[int, Generation]]:
    """Yield generations by the index of their prompt, one batch at a time.

    Args:
        prompts: rendered text. Nothing is added, so the template has to hold the bos token.
        seed: one for all (row i then draws from seed and i), or one for each prompt. A row's draws
            don't depend on the rows it is batched with.
        batch_tokens: upper bound of rows x (longest prompt + max_new_tokens) in a batch.
        label: what the progress bar is called; None shows none.

    Raises:
        EvaluationError: a prompt is empty, or no end-of-turn token is known.
    """
    seeds = (
        [seed * 1_000_003 + i for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
    )
    ids = tokenize(tokenizer, prompts)
    limit = sampling.max_new_tokens
    settings = generation_settings(model, tokenizer, max_new_tokens=limit)
    was_training = model.training
    model.eval()
    try:
        with progress(len(prompts), label or "", unit="answer", silent=label is None) as bar:
            for indices in _batches(ids, max_new_tokens=limit, batch_tokens=batch_tokens):
                batch = _Batch([ids[i] for i in indices], model, settings)
                for ended in batch.generate(sampling, [seeds[i] for i in indices]):
                    bar.update(ended)
                yield {
                    index: _generation(tokenizer, new, settings)
                    for index, new in zip(indices, batch.new, strict=True)
                }
    finally:
        model.train(was_training)


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Return the prompts' token ids, exactly as rendered."""
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
    """Return greedy settings, whatever the checkpoint's defaults; any end token ends a row.

    A logits processor samples (`sampler`), so that samples don't depend on the batch.
    """
    ends = end_ids(model, tokenizer)
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=ends,
        # Any token will do: padding is masked, and ended rows are cut at their first end token.
        pad_token_id=pad if pad is not None else ends[0],
        bos_token_id=model.generation_config.bos_token_id,
        repetition_penalty=1.0,
        use_cache=True,
        return_dict_in_generate=True,
    )


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end a turn.

    Raises:
        EvaluationError: there are none.
    """
    generation = model.generation_config
    ends = eos_token_ids(generation.eos_token_id if generation else None, tokenizer)
    if not ends:
        raise EvaluationError(
            "neither generation_config.json nor the tokenizer names an end-of-turn token, so no answer "
            "would end; set eos_token_id in generation_config.json"
        )
    return ends


class _QuarterEnded(StoppingCriteria):
    """Stop a round once a quarter of its rows have ended."""

    def __init__(self, eos_ids: Tensor, rows: int) -> None:
        self.eos_ids = eos_ids
        self.ended_B = torch.zeros(rows, dtype=torch.bool, device=eos_ids.device)

    def __call__(self, input_ids: LongTensor, scores: Any, **_: object) -> Tensor:
        self.ended_B |= torch.isin(input_ids[:, -1], self.eos_ids)
        return (self.ended_B.sum() * 4 >= len(self.ended_B)).expand(len(self.ended_B))


class _Batch:
    """One batch while it is generated; `new` holds each row's new tokens."""

    def __init__(
        self, ids: Sequence[Sequence[int]], model: PreTrainedModel, settings: GenerationConfig
    ) -> None:
        self.model = model
        self.settings = settings
        self.limit: int = settings.max_new_tokens
        self.length = max(map(len, ids))
        self.new: list[list[int]] = [[] for _ in ids]
        self.eos_ids = torch.tensor(settings.eos_token_id, device=model.device)
        padded = [[settings.pad_token_id] * (self.length - len(row)) + list(row) for row in ids]
        masks = [[0] * (self.length - len(row)) + [1] * len(row) for row in ids]
        self.ids_BT = torch.tensor(padded, device=model.device)
        self.mask_BT = torch.tensor(masks, device=model.device)

    def generate(self, sampling: Sampling, seeds: Sequence[int]) -> Iterator[int]:
        """Generate all rows; yield the number of rows that ended in each round."""
        active = torch.arange(len(self.new), device=self.ids_BT.device)
        steps = self.limit if sampling.temperature else 0
        uniforms_BT = uniforms(seeds, steps).to(self.ids_BT.device)
        cache = None
        while len(active) > 0:
            settings = copy.deepcopy(self.settings)
            settings.max_new_tokens = self.limit - (self.ids_BT.shape[1] - self.length)
            output = self.model.generate(
                self.ids_BT,
                attention_mask=self.mask_BT,
                past_key_values=cache,
                generation_config=settings,
                logits_processor=sampler(sampling, uniforms_BT[active], self.length),
                stopping_criteria=StoppingCriteriaList([_QuarterEnded(self.eos_ids, len(active))]),
            )
            unfinished_B = self._record(output.sequences, active)
            yield int((~unfinished_B).sum())
            rows = unfinished_B.nonzero().squeeze(1)
            active, cache = active[rows], output.past_key_values
            if len(rows) > 0:
                cache.batch_select_indices(rows)
            self._select(output.sequences, rows)

    def _record(self, ids_BT: Tensor, active: Tensor) -> Tensor:
        """Store the new tokens of every active row; return True for the rows that continue."""
        new_BT = ids_BT[:, self.length :]
        for row, tokens in zip(active.tolist(), new_BT.tolist(), strict=True):
            self.new[row] = tokens
        if new_BT.shape[1] >= self.limit:
            return torch.zeros(len(active), dtype=torch.bool, device=ids_BT.device)
        return ~torch.isin(new_BT, self.eos_ids).any(dim=1)

    def _select(self, ids_BT: Tensor, rows: Tensor) -> None:
        """Continue with `rows` alone, their new tokens appended."""
        added = ids_BT.shape[1] - self.mask_BT.shape[1]
        ones_BT = self.mask_BT.new_ones((len(self.mask_BT), added))
        self.mask_BT = torch.cat([self.mask_BT, ones_BT], dim=1)[rows]
        self.ids_BT = ids_BT[rows]


def _batches(
    ids: Sequence[Sequence[int]], *, max_new_tokens: int, batch_tokens: int
) -> Iterator[list[int]]:
    """Yield indices of prompts, longest first: a batch too big for the memory fails at once."""
    order = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i))
    start = 0
    while start < len(order):
        room = batch_tokens // (len(ids[order[start]]) + max_new_tokens)
        rows = max(1, min(room, _MAX_ROWS))
        yield order[start : start + rows]
        start += rows


def _generation(
    tokenizer: PreTrainedTokenizerBase, new: Sequence[int], settings: GenerationConfig
) -> Generation:
    eos_ids = set(settings.eos_token_id)
    stop = next((i for i, token in enumerate(new) if token in eos_ids), None)
    ids = tuple(new[:stop])
    # Special tokens stay in the text: in some vocabularies the think tags are special.
    text = tokenizer.decode(ids, skip_special_tokens=False)
    return Generation(text=str(text), token_ids=ids, finished=stop is not None)
