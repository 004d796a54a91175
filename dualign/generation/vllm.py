"""Generation with vLLM, many times faster on an accelerator; imported only when chosen."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import GenerationConfig

from dualign.checkpoints.patterns import has_whole_tensors, largest_rank
from dualign.errors import EvaluationError
from dualign.generation.answers import Generation
from dualign.generation.generate import tokenize
from dualign.generation.sampling import Sampling
from dualign.generation.stops import stop_watches
from dualign.models.tokenizer import eos_token_ids
from dualign.terminal import progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GenerateTexts = Callable[
    [Sequence[str], Sequence[Sampling], Sequence[int], Sequence[Sequence[int]]],
    Iterator[dict[int, Generation]],
]
"""(rendered prompts, sampling, seed and perhaps tokens for each) -> generations by index, batch after
batch.
"""

_BATCH_ROWS = 2048  # prompts per call; a killed run loses at most these
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # adapter ranks that vLLM accepts as max_lora_rank


def vllm_batches(
    base: str,
    adapter: str | None,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    dtype: str,
    label: str,
) -> GenerateTexts:
    """Load the model and return the function that generates with it.

    Raises:
        EvaluationError: vLLM can't be imported.
    """
    try:
        from vllm import LLM, SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.lora.request import LoRARequest
    except ImportError as error:
        raise EvaluationError(
            f"backend vllm: can't be imported ({error}); pip install vllm on a machine with an "
            "accelerator, or choose backend: transformers"
        ) from None
    lora = {"enable_lora": True, "max_lora_rank": _served_rank(Path(adapter))} if adapter else {}
    # Prompts that start with the same tokens (few-shot, samples, budgets) are computed once.
    engine = LLM(model=base, dtype=dtype, enable_prefix_caching=True, **lora)
    request = LoRARequest("adapter", 1, adapter) if adapter else None
    ends = _end_ids(base, tokenizer)

    def params(sampling: Sampling, seed: int, stop: Sequence[str]) -> SamplingParams:
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k or -1,  # -1 takes all
            max_tokens=sampling.max_new_tokens,
            seed=seed % 2**31,
            stop=list(stop),
            stop_token_ids=ends,
            skip_special_tokens=False,
        )

    def batches(
        prompts: Sequence[str],
        samplings: Sequence[Sampling],
        seeds: Sequence[int],
        token_ids: Sequence[Sequence[int]],
    ) -> Iterator[dict[int, Generation]]:
        ids = tokenize(tokenizer, prompts, token_ids)
        watches = stop_watches(tokenizer, prompts, samplings)

        def answers(batch: Sequence[int], stops: Sequence[Sequence[str]]) -> list[Generation]:
            outputs = engine.generate(
                [TokensPrompt(prompt_token_ids=ids[i]) for i in batch],
                [
                    params(samplings[i], seeds[i], stop)
                    for i, stop in zip(batch, stops, strict=True)
                ],
                use_tqdm=False,
                lora_request=request,
            )
            made = [_generation(tokenizer, output.outputs[0].token_ids, ends) for output in outputs]
            return [
                generation if (watch := watches[i]) is None else watch.apply(generation)
                for i, generation in zip(batch, made, strict=True)
            ]

        with progress(len(ids), label, unit="answer") as bar:
            for start in range(0, len(ids), _BATCH_ROWS):
                batch = range(start, min(start + _BATCH_ROWS, len(ids)))
                stops = [
                    () if (watch := watches[i]) is None or watch.in_trace else samplings[i].stop
                    for i in batch
                ]
                made = dict(zip(batch, answers(batch, stops), strict=True))
                # The engine looks for stop strings in a trace, too: what ended there is asked again.
                again = [
                    i
                    for i, stop in zip(batch, stops, strict=True)
                    if stop
                    and not made[i].finished
                    and len(made[i].token_ids) < samplings[i].max_new_tokens
                ]
                if again:
                    made |= zip(again, answers(again, [()] * len(again)), strict=True)
                bar.update(len(batch))
                yield made

    return batches


def max_lora_rank(rank: int) -> int | None:
    """Return the smallest max_lora_rank of vLLM that holds an adapter of `rank`, or None."""
    return next((allowed for allowed in _RANKS if allowed >= rank), None)


def _served_rank(adapter: Path) -> int:
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if has_whole_tensors(config):
        raise EvaluationError(
            f"{adapter}: has whole tensors (modules_to_save or bias), which vLLM doesn't serve; fold the "
            "adapter into its base, or choose backend: transformers"
        )
    rank = largest_rank(config)
    served = max_lora_rank(rank)
    if served is None:
        raise EvaluationError(
            f"{adapter}: rank {rank} is more than vLLM serves ({_RANKS[-1]}); fold the adapter "
            "into its base, or choose backend: transformers"
        )
    return served


def _end_ids(base: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    try:
        configured = GenerationConfig.from_pretrained(base).eos_token_id
    except OSError:  # no generation_config.json
        configured = None
    return eos_token_ids(configured, tokenizer)


def _generation(
    tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[int], eos_ids: Sequence[int]
) -> Generation:
    finished = bool(token_ids) and token_ids[-1] in eos_ids
    ids = tuple(token_ids[:-1] if finished else token_ids)
    text = str(tokenizer.decode(ids, skip_special_tokens=False))
    return Generation(text=text, token_ids=ids, finished=finished)
