"""Batched generation from rendered prompts by a model in this process."""

from collections.abc import Iterator, Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from dualign.errors import EvaluationError
from dualign.generation.answers import Generation
from dualign.generation.continuous import continuously, serves
from dualign.generation.rounds import by_rounds
from dualign.generation.row import Row
from dualign.generation.sampling import Sampling
from dualign.generation.stops import stop_watches
from dualign.models.tokenizer import eos_token_ids
from dualign.terminal import progress

_BATCH_TOKENS = 32768


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    sampling: Sampling | Sequence[Sampling],
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
    sampling: Sampling | Sequence[Sampling],
    seed: int | Sequence[int] = 0,
    *,
    batch_tokens: int = _BATCH_TOKENS,
    label: str | None = None,
    token_ids: Sequence[Sequence[int]] = (),
) -> Iterator[dict[int, Generation]]:
    """Yield generations by the index of their prompt, as rows end.

    Args:
        prompts: rendered text. Nothing is added, so the template has to hold the bos token.
        sampling: one for all, or one for each prompt.
        seed: one for all (row i then draws from seed and i), or one for each prompt. A row's draws
            don't depend on the rows it is batched with.
        batch_tokens: upper bound of rows x tokens of the longest at a time; a row alone may have more.
        label: what the progress bar is called; None shows none.
        token_ids: of each prompt; none where they are those of its text.

    Raises:
        EvaluationError: a prompt is empty, or no end-of-turn token is known.
    """
    rows = _rows(model, tokenizer, prompts, sampling, seed, token_ids)
    if not rows:
        return
    was_training = model.training
    model.eval()
    try:
        with progress(len(rows), label or "", unit="answer", silent=label is None) as bar:
            if serves(model):
                batches = continuously(model, rows, batch_tokens=batch_tokens)
            else:
                settings = generation_settings(model, tokenizer)
                batches = by_rounds(model, rows, settings, batch_tokens=batch_tokens)
            for ended in batches:
                yield {row.index: row.generation(tokenizer) for row in ended}
                bar.update(len(ended))
    finally:
        model.train(was_training)


def _rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    sampling: Sampling | Sequence[Sampling],
    seed: int | Sequence[int],
    token_ids: Sequence[Sequence[int]] = (),
) -> list[Row]:
    count = len(prompts)
    samplings = [sampling] * count if isinstance(sampling, Sampling) else sampling
    seeds = [seed * 1_000_003 + i for i in range(count)] if isinstance(seed, int) else seed
    ends = frozenset(end_ids(model, tokenizer)) if count else ()
    watches = stop_watches(tokenizer, prompts, samplings)
    return [
        Row(index, ids, sampling, seed=seed, ends=ends, watch=watch)
        for index, (ids, sampling, seed, watch) in enumerate(
            zip(tokenize(tokenizer, prompts, token_ids), samplings, seeds, watches, strict=True)
        )
    ]


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    token_ids: Sequence[Sequence[int]] = (),
) -> list[list[int]]:
    """Return the prompts' token ids, exactly as rendered; those of `token_ids` where there are any."""
    if not prompts:
        return []
    ids: list[list[int]] = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    ids = [list(own) or row for own, row in zip(token_ids or [()] * len(ids), ids, strict=True)]
    for index, row in enumerate(ids):
        if not row:
            raise EvaluationError(
                f"prompt {index} is empty; expected the text that the model is to continue"
            )
    return ids


def generation_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_new_tokens: int | None = None
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
