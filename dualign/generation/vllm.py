"""Generation through vLLM, many times faster on an accelerator; imported only when chosen."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm
from transformers import GenerationConfig

from dualign.errors import EvaluationError
from dualign.generation.generate import Generation, tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PART = 2048  # prompts handed over at once; what is lost at most when a run is killed
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the adapter ranks that vLLM can be set up for

Answer = Callable[[Sequence[str], int, Sequence[int]], Iterator[dict[int, Generation]]]


def vllm_answers(
    base: str,
    adapter: str | None,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    dtype: str,
    temperature: float,
    top_p: float,
    label: str,
) -> Answer:
    """A function (prompts, limit, seeds) -> generations by index, in parts; loads the model.

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
    lora = {"enable_lora": True, "max_lora_rank": _rank(Path(adapter))} if adapter else {}
    engine = LLM(model=base, dtype=dtype, **lora)
    request = LoRARequest("adapter", 1, adapter) if adapter else None
    ends = _end_ids(base, tokenizer)

    def settings(limit: int, seed: int) -> SamplingParams:
        return SamplingParams(
            temperature=temperature,
            top_p=top_p,
            max_tokens=limit,
            seed=seed % 2**31,
            stop_token_ids=ends,
            skip_special_tokens=False,
        )

    def answer(
        prompts: Sequence[str], limit: int, seeds: Sequence[int]
    ) -> Iterator[dict[int, Generation]]:
        ids = tokenized(tokenizer, prompts)
        with tqdm(total=len(ids), desc=label, unit="answer") as bar:
            for start in range(0, len(ids), PART):
                part = range(start, min(start + PART, len(ids)))
                outputs = engine.generate(
                    [TokensPrompt(prompt_token_ids=ids[i]) for i in part],
                    [settings(limit, seeds[i]) for i in part],
                    use_tqdm=False,
                    lora_request=request,
                )
                bar.update(len(part))
                yield {
                    i: _generation(tokenizer, output.outputs[0].token_ids, ends)
                    for i, output in zip(part, outputs, strict=True)
                }

    return answer


def _rank(adapter: Path) -> int:
    rank = int(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"])
    if rank > _RANKS[-1]:
        raise EvaluationError(
            f"{adapter}: rank {rank} is more than vLLM serves ({_RANKS[-1]}); fold the adapter "
            "into its base, or choose backend: transformers"
        )
    return next(allowed for allowed in _RANKS if allowed >= rank)


def _end_ids(base: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    try:
        named = GenerationConfig.from_pretrained(base).eos_token_id
    except OSError:  # no generation_config.json
        named = None
    found = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id}
    return sorted(int(i) for i in found if i is not None)


def _generation(
    tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[int], ends: Sequence[int]
) -> Generation:
    finished = bool(token_ids) and token_ids[-1] in ends
    ids = tuple(token_ids[:-1] if finished else token_ids)
    text = str(tokenizer.decode(ids, skip_special_tokens=False))
    return Generation(text=text, token_ids=ids, finished=finished)
