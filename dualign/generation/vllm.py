"""Generation with vLLM, many times faster on an accelerator; imported only when chosen."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from transformers import GenerationConfig

from dualign.checkpoints.patterns import has_whole_tensors, largest_rank
from dualign.errors import EvaluationError
from dualign.generation.answers import Generation
from dualign.generation.generate import tokenize
from dualign.generation.sampling import Sampling
from dualign.generation.stops import StopWatch, stop_watches
from dualign.models.tokenizer import eos_token_ids
from dualign.terminal import progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from vllm import SamplingParams

GenerateTexts = Callable[
    [Sequence[str], Sequence[Sampling], Sequence[int], Sequence[Sequence[int]]],
    Iterator[dict[int, Generation]],
]
"""(rendered prompts, sampling, seed and perhaps tokens for each) -> generations by index, batch after
batch.
"""

_Row: TypeAlias = "tuple[Sequence[int], Sampling, int, StopWatch | None]"
"""tokens of a prompt, sampling, seed, and what looks for its stop strings"""
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
    return _Engine(base, adapter, tokenizer, dtype=dtype, label=label).batches


class _Engine:
    """A model loaded by vLLM, and its adapter."""

    def __init__(
        self,
        base: str,
        adapter: str | None,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        dtype: str,
        label: str,
    ) -> None:
        try:
            from vllm import LLM
            from vllm.lora.request import LoRARequest
        except ImportError as error:
            raise EvaluationError(
                f"backend vllm: can't be imported ({error}); serve the model with vLLM from an environment "
                "of its own and name its address (docs/endpoints.md), or choose backend: transformers"
            ) from None
        lora = (
            {"enable_lora": True, "max_lora_rank": _served_rank(Path(adapter))} if adapter else {}
        )
        # Prompts that start with the same tokens (few-shot, samples, budgets) are computed once.
        self._engine = LLM(model=base, dtype=dtype, enable_prefix_caching=True, **lora)
        self._adapter = LoRARequest("adapter", 1, adapter) if adapter else None
        self._tokenizer, self._label = tokenizer, label
        self._ends = _end_ids(base, tokenizer)

    def batches(
        self,
        prompts: Sequence[str],
        samplings: Sequence[Sampling],
        seeds: Sequence[int],
        token_ids: Sequence[Sequence[int]],
    ) -> Iterator[dict[int, Generation]]:
        """Yield generations by the index of their prompt, batch after batch."""
        ids = tokenize(self._tokenizer, prompts, token_ids)
        watches = stop_watches(self._tokenizer, prompts, samplings)
        rows = list(zip(ids, samplings, seeds, watches, strict=True))
        with progress(len(ids), self._label, unit="answer") as bar:
            for start in range(0, len(ids), _BATCH_ROWS):
                batch = rows[start : start + _BATCH_ROWS]
                answers = self._answers(batch)
                bar.update(len(batch))
                yield dict(enumerate(answers, start))

    def _answers(self, rows: Sequence[_Row]) -> list[Generation]:
        """Generate; the engine looks for stop strings in a trace, too: what ended there is asked again."""
        stops = [
            () if watch is None or watch.in_trace else sampling.stop
            for _, sampling, _, watch in rows
        ]
        answers = self._generate(rows, stops)
        again = [
            i
            for i, (answer, stop) in enumerate(zip(answers, stops, strict=True))
            if stop and not answer.finished and len(answer.token_ids) < rows[i][1].max_new_tokens
        ]
        if again:
            repeated = self._generate([rows[i] for i in again], [()] * len(again))
            for i, answer in zip(again, repeated, strict=True):
                answers[i] = answer
        return answers

    def _generate(self, rows: Sequence[_Row], stops: Sequence[Sequence[str]]) -> list[Generation]:
        from vllm.inputs import TokensPrompt

        outputs = self._engine.generate(
            [TokensPrompt(prompt_token_ids=ids) for ids, *_ in rows],
            [
                self._params(sampling, seed, stop)
                for (_, sampling, seed, _), stop in zip(rows, stops, strict=True)
            ],
            use_tqdm=False,
            lora_request=self._adapter,
        )
        answers = (
            _generation(self._tokenizer, output.outputs[0].token_ids, self._ends)
            for output in outputs
        )
        return [
            answer if watch is None else watch.apply(answer)
            for answer, (*_, watch) in zip(answers, rows, strict=True)
        ]

    def _params(self, sampling: Sampling, seed: int, stop: Sequence[str]) -> "SamplingParams":
        from vllm import SamplingParams

        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k or -1,  # -1 takes all
            max_tokens=sampling.max_new_tokens,
            seed=seed % 2**31,
            stop=list(stop),
            stop_token_ids=self._ends,
            skip_special_tokens=False,
        )


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
