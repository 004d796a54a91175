"""Settings of a judge: a recipe's `judge` key. Nothing heavy is imported: recipes load from here.

judge: {kind: pairwise, model: {url: "http://127.0.0.1:8000/v1", name: big}, criteria: "The shorter one."}
judge: {kind: rubric, model: stage:sft, rubric: "Is it polite?", scale: [1, 5]}
judge: {kind: reward_model, model: owner/name}
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dualign.data.conversation import Mode
from dualign.generation.config import Backend, Endpoint, endpoint_of, model_label, model_problems
from dualign.generation.estimate import Demand
from dualign.judges.prompts import CRITERIA, PAIRWISE, RUBRIC, SCORED
from dualign.tasks.base import Problem

Dtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _ModelThatAnswers:
    """How a model is asked that writes its judgment."""

    model: str | Endpoint
    """who judges: a checkpoint or an endpoint"""
    mode: Mode = "no_think"
    """the mode in which it judges; a model without modes has one"""
    max_new_tokens: int = 1024
    """tokens of a judgment at most, with its trace"""
    temperature: float = 0.0
    """of sampling; 0 is greedy"""
    batch_tokens: int = 32768
    """tokens that are in memory at once: rows of a batch times (longest prompt + limit)"""
    backend: Backend = "transformers"
    """the engine of a checkpoint; vllm has to be installed"""
    dtype: Dtype = "auto"
    """the weights' type in memory"""

    @property
    def label(self) -> str:
        """Its name in tables."""
        return model_label(self.model)

    def problems(self) -> list[tuple[str, str]]:
        issues = model_problems(self.model, "model")
        for key in ("max_new_tokens", "batch_tokens"):
            if getattr(self, key) < 1:
                issues.append((key, f"expected 1 or more, found {getattr(self, key)}"))
        if self.temperature < 0:
            issues.append(("temperature", f"expected 0 or more, found {self.temperature}"))
        return issues


@dataclass(frozen=True, kw_only=True, slots=True)
class PairwiseConfig(_ModelThatAnswers):
    """A model that says which of two answers is better, asked in both orders (docs/judges.md)."""

    kind: Literal["pairwise"] = "pairwise"
    """this kind of judge"""
    criteria: str = CRITERIA
    """what makes an answer the better one"""
    min_consistent: float = 0.5
    """the stage ends if both orders agree in fewer of the decided comparisons, beyond chance: such a
    judge decides by place; 0 lets any judge pass
    """

    def problems(self) -> list[tuple[str, str]]:
        issues = _ModelThatAnswers.problems(self) + _text_problems("criteria", self.criteria)
        if not 0 <= self.min_consistent <= 1:
            issues.append(
                ("min_consistent", f"expected a share of 0 to 1, found {self.min_consistent}")
            )
        return issues

    def in_words(
        self, problems: Iterable[Problem], *, answers: int, answer_tokens: int, sets: int = 1
    ) -> str:
        """Describe what will be asked at most, for `dualign plan`.

        Args:
            answers: of each question that are compared, all with all.
            answer_tokens: the most tokens of an answer.
            sets: of so many answers that each question has.
        """
        text = PAIRWISE + self.criteria
        requests = sets * answers * (answers - 1)
        return _in_words(self, problems, text, requests, 2 * answer_tokens, "both orders asked")


@dataclass(frozen=True, kw_only=True, slots=True)
class RubricConfig(_ModelThatAnswers):
    """A model that gives each answer a score by a rubric."""

    kind: Literal["rubric"] = "rubric"
    """this kind of judge"""
    rubric: str = SCORED
    """what a score is given for"""
    scale: tuple[float, ...] = (1.0, 10.0)
    """the lowest and the highest score"""

    def has(self, score: float) -> bool:
        """Return whether a score is on the scale."""
        return self.scale[0] <= score <= self.scale[-1]

    def problems(self) -> list[tuple[str, str]]:
        issues = _ModelThatAnswers.problems(self) + _text_problems("rubric", self.rubric)
        if len(self.scale) != 2 or not self.scale[0] < self.scale[-1]:
            shown = ", ".join(f"{number:g}" for number in self.scale)
            issues.append(("scale", f"expected [lowest, highest], found [{shown}]"))
        return issues

    def in_words(
        self, problems: Iterable[Problem], *, answers: int, answer_tokens: int, sets: int = 1
    ) -> str:
        """Describe what will be asked at most, as `PairwiseConfig.in_words`."""
        return _in_words(
            self, problems, RUBRIC + self.rubric, sets * answers, answer_tokens, "one each"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModelConfig:
    """A sequence classifier with one label, whose logit is the score."""

    model: str
    """a hub id or a folder, with a chat template"""
    kind: Literal["reward_model"] = "reward_model"
    """this kind of judge"""
    batch_tokens: int = 32768
    """tokens of a batch at most, with its padding"""
    dtype: Dtype = "auto"
    """the weights' type in memory; scores are float32"""

    @property
    def label(self) -> str:
        """Its name in tables."""
        return self.model

    def problems(self) -> list[tuple[str, str]]:
        issues = []
        if endpoint_of(self.model):
            message = "a server's API for chat gives no scores: expected a hub id or a folder"
            issues.append(("model", message))
        if self.batch_tokens < 1:
            issues.append(("batch_tokens", f"expected 1 or more, found {self.batch_tokens}"))
        return issues

    def in_words(
        self, problems: Iterable[Problem], *, answers: int, answer_tokens: int, sets: int = 1
    ) -> str:
        """Describe what will be scored at most."""
        return (
            f"judge {self.model}: {len(list(problems)) * sets * answers:,} answers scored at most"
        )


JudgeConfig = PairwiseConfig | RubricConfig | RewardModelConfig


def _text_problems(key: str, text: str) -> list[tuple[str, str]]:
    return (
        []
        if text.strip()
        else [(key, "expected a text, found nothing: leave it out, or write one")]
    )


def _in_words(
    judge: _ModelThatAnswers,
    problems: Iterable[Problem],
    text: str,
    requests: int,
    answer_tokens: int,
    how: str,
) -> str:
    """Return the demand of so many requests for each question, each with answers of so many tokens."""
    listed = list(problems)
    instruction = Problem(id="", messages=({"content": text},), expected=None, extra={})
    demand = Demand.of(listed, judge.max_new_tokens, requests)
    extra = Demand.of([instruction], 0).prompt_tokens + answer_tokens
    demand += Demand(prompt_tokens=extra * demand.requests)
    if endpoint := endpoint_of(judge.model):
        return f"judge {demand.in_words(endpoint)} ({how})"
    return (
        f"judge {judge.label}: {demand.requests:,} judgments at most ({how}), of "
        f"{demand.answer_tokens:,} tokens at most"
    )
