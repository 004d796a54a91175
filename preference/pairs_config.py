"""The part of a recipe that builds preference pairs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dualign.generation.config import Backend, Endpoint, endpoint_of, model_problems
from dualign.generation.estimate import Demand
from dualign.switch import Switch
from dualign.tasks import load_problems, load_tasks


@dataclass(frozen=True, kw_only=True, slots=True)
class PairsStage:
    """Preference pairs from a checkpoint: right against wrong, or a strong model against a weak."""

    name: str
    """names the stage and its run directory"""
    model: str | Endpoint
    """the checkpoint or endpoint that answers; with rejected_model, the one that writes the chosen answers"""
    tasks: tuple[str, ...]
    """task files: prompts, expected answers and a verifier"""
    kind: Literal["pairs"] = "pairs"
    """what the stage does"""
    rejected_model: str | Endpoint | None = None
    """writes the rejected answers, like SmolLM3's weak model; absent: a verifier sorts the samples"""
    modes: tuple[Literal["think", "no_think"], ...] = ("think", "no_think")
    """each mode gets its own pairs"""
    rows: int | None = None
    """at most this many prompts of each task"""
    samples: int = 4
    """answers sampled for each prompt and mode; with rejected_model one of each model, or with length:
    matched this many
    """
    choose: Literal["best_worst"] | None = None
    """of the pairs that a prompt's samples make: best_worst, the best against the worst, equal ones at
    random; absent: at random
    """
    length: Literal["balanced", "matched"] | None = None
    """matched: of the pairs that choose leaves open, those with the smallest difference in tokens;
    balanced and matched: pairs with a longer chosen answer go until chosen isn't longer on average
    """
    pairs_per_prompt: int = 1
    """at most this many pairs from one prompt and mode"""
    max_new_tokens: int = 512
    """tokens sampled at most"""
    temperature: float = 1.0
    """of sampling"""
    top_p: float = 1.0
    """of sampling"""
    batch_tokens: int = 32768
    """tokens that are in memory at once: rows of a batch times (longest prompt + limit)"""
    backend: Backend | None = None
    """the engine of checkpoints: transformers, or vllm, which has to be installed; absent: transformers"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """the weights' type in memory"""
    switch: Switch | None = None
    """what switches the modes; absent: that of each model's template"""

    @property
    def engine(self) -> Backend:
        """What checkpoints answer with."""
        return self.backend or "transformers"

    @property
    def checks_answers(self) -> bool:
        """Whether a verifier sorts the samples."""
        return self.rejected_model is None

    @property
    def samples_asked(self) -> int:
        """Answers that each model is asked for, of each prompt in each mode."""
        return self.samples if self.rejected_model is None or self.length == "matched" else 1

    def problems(self) -> list[tuple[str, str]]:
        issues = model_problems(self.model, "model")
        if self.rejected_model is not None:
            issues += model_problems(self.rejected_model, "rejected_model")
        if self.rejected_model is None and self.samples < 2:
            issues.append(("samples", "right against wrong needs 2 samples or more"))
        if self.temperature == 0 and self.samples_asked > 1:
            issues.append(("temperature", "greedy samples are all alike: expected more than 0"))
        if self.temperature < 0:
            issues.append(("temperature", f"expected 0 or more, found {self.temperature}"))
        if not 0 < self.top_p <= 1:
            issues.append(("top_p", f"expected more than 0 and at most 1, found {self.top_p}"))
        if self.rejected_model is not None and self.choose is not None:
            message = "a strong and a weak model aren't scored: remove choose"
            issues.append(("choose", message))
        for name in ("samples", "pairs_per_prompt", "max_new_tokens", "batch_tokens"):
            if getattr(self, name) < 1:
                issues.append((name, f"expected 1 or more, found {getattr(self, name)}"))
        return issues

    def in_words(self) -> str:
        """Describe what will be asked at most, for `dualign plan`."""
        return "\n".join(self._words())

    def _words(self) -> Iterator[str]:
        asked = Demand()
        for task in load_tasks(self.tasks):
            problems = load_problems(task, limit=self.rows)
            asked += Demand.of(problems, self.max_new_tokens, len(self.modes) * self.samples_asked)
        for model in (self.model, self.rejected_model):
            if model is not None and (endpoint := endpoint_of(model)):
                yield asked.in_words(endpoint)
