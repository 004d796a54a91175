"""The SFT part of a recipe, and the part that makes traces for its rows.

Reasoning mid-training is an SFT stage with its own template and `data.supervise: all`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from dualign.config import nearest
from dualign.data.config import DataConfig, QuestionData
from dualign.data.conversation import Mode
from dualign.generation.config import Backend, Endpoint, endpoint_of, model_problems
from dualign.generation.estimate import Demand
from dualign.judges.config import JudgeConfig, PairwiseConfig, RewardModelConfig, RubricConfig
from dualign.models.new_tokens import NewToken
from dualign.switch import Switch
from dualign.tasks.files import template_problems
from dualign.training.arguments import SFT_ARGUMENTS
from dualign.training.config import TrainingStage, stream_problems, training_problems
from dualign.verifiers.base import Verifier
from dualign.verifiers.table import VerifierSettings, settings_problems, verifier_of

_LOSSES = ("nll", "dft")


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTStage(TrainingStage):
    """Supervised fine-tuning on packed conversations of both modes."""

    data: DataConfig
    """what is trained on, and how it is packed and supervised"""
    kind: Literal["sft"] = "sft"
    """what the stage does"""
    train: Annotated[Mapping[str, Any], SFT_ARGUMENTS] = field(default_factory=dict)
    """every other field of TRL's SFTConfig (and so of TrainingArguments), by its own name"""
    add_tokens: tuple[str | NewToken, ...] = ()
    """new words, each one token: its text, or keys with a description to begin from (docs/new-tokens.md)"""

    @property
    def new_tokens(self) -> tuple[NewToken, ...]:
        return tuple(
            NewToken(text=token) if isinstance(token, str) else token for token in self.add_tokens
        )

    def problems(self) -> list[tuple[str, str]]:
        issues = TrainingStage.problems(self) + training_problems(self.train, self.dtype, self.data)
        issues += stream_problems(self.train) if self.data.stream else []
        loss = self.train.get("loss_type", "nll")
        if loss not in _LOSSES:
            issues.append(
                ("train.loss_type", f"unknown value {loss!r}{nearest(str(loss), _LOSSES)}")
            )
        return issues + self._token_problems()

    def _token_problems(self) -> list[tuple[str, str]]:
        issues, texts = [], [token.text for token in self.new_tokens]
        if self.lora and self.add_tokens:
            issues += [
                (
                    f"lora.{key}",
                    "not with add_tokens, whose rows PEFT trains by themselves: remove it",
                )
                for key, used in (
                    ("modules_to_save", self.lora.modules_to_save),
                    ("bias", self.lora.bias != "none"),
                    ("init_lora_weights", self.lora.takes_from_base),
                )
                if used
            ]
        for number, token in enumerate(self.new_tokens):
            key = f"add_tokens.{number}"
            if isinstance(self.add_tokens[number], str):  # keys are checked where they are read
                issues += [(key, message) for _, message in token.problems()]
            if token.text in texts[:number]:
                issues.append((key, f"{token.text!r} is in the list twice: remove one"))
        return issues


@dataclass(frozen=True, kw_only=True, slots=True)
class TracesStage:
    """Traces for rows that have none: a model thinks about each question, and a verifier or judge checks its answer."""

    name: str
    """names the stage and its run directory"""
    model: str | Endpoint
    """what thinks: the start model itself (self-distillation), any other checkpoint, or an endpoint"""
    data: QuestionData
    """the rows: questions with their answers, in any shape of docs/data.md"""
    kind: Literal["traces"] = "traces"
    """what the stage does"""
    verifier: VerifierSettings | None = None
    """what checks the model's answer (docs/verifiers.md): its name, or keys with its `kind`"""
    judge: JudgeConfig | None = None
    """in place of a verifier (docs/judges.md): pairwise accepts an answer that isn't worse than the row's"""
    at_least: float | None = None
    """of a judge that scores: the lowest score of an accepted answer"""
    expected: str | None = None
    """what the verifier compares with, with fields of the file's row in braces; absent: the row's answer"""
    instruction: str | None = None
    """text after the question when the model is asked, after an empty line; the row doesn't get it"""
    trace: Literal["thinking", "answer"] = "thinking"
    """what becomes the trace: the model's thinking, or, of a model without think mode, its whole answer"""
    answer: Literal["row", "model"] = "row"
    """whose answer follows the trace"""
    answer_first: bool = False
    """tell the model the row's answer, and let it find the way there (docs/traces.md says the danger)"""
    tries: int = 4
    """answers sampled for each question at most"""
    choose: Literal["random", "shortest", "all"] = "random"
    """of several right ones: the first, as good as drawn, after which the row isn't asked again; the one
    with the fewest tokens of trace; or a row for each
    """
    min_trace_tokens: int | None = None
    """a shorter trace is rejected"""
    max_trace_tokens: int | None = None
    """a longer trace is rejected"""
    both_modes: bool = False
    """a row that got a trace is also kept as it is: a question in both modes"""
    without_trace: Literal["no_think", "drop"] = "no_think"
    """a row that got none: kept as a no_think row, or left out"""
    max_new_tokens: int = 2048
    """tokens sampled at most, trace and answer together"""
    temperature: float = 1.0
    """of sampling"""
    top_p: float = 1.0
    """of sampling"""
    batch_tokens: int = 32768
    """tokens that are in memory at once: rows of a batch times (longest prompt + limit)"""
    backend: Backend = "transformers"
    """the engine of a checkpoint; vllm has to be installed"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """the weights' type in memory"""
    switch: Switch | None = None
    """what switches the modes; absent: that of the model's template"""

    @property
    def mode(self) -> Mode:
        """The mode in which the model is asked."""
        return "think" if self.trace == "thinking" else "no_think"

    @property
    def check(self) -> Verifier | None:
        """The verifier with its settings; None if a judge is asked."""
        return None if self.verifier is None else verifier_of(self.verifier)

    def in_words(self) -> str:
        """Describe what will be asked at most, for `dualign plan`."""
        if self.data.unknown:
            return f"questions: {self.data.unknown}"
        from dualign.data.questions import rows_as_problems

        problems = rows_as_problems(self.data)
        asked = Demand.of(problems, self.max_new_tokens, self.tries)
        if endpoint := endpoint_of(self.model):
            words = asked.in_words(endpoint)
        else:
            words = (
                f"questions: {len(problems):,} at most, each asked {self.tries:,} times at most: "
                f"{asked.requests:,} answers of {asked.answer_tokens:,} tokens"
            )
        if self.judge is None:
            return words
        answers = 2 if isinstance(self.judge, PairwiseConfig) else 1
        judged = self.judge.in_words(
            problems, answers=answers, answer_tokens=self.max_new_tokens, sets=self.tries
        )
        return f"{words}\n{judged}"

    def demands(self) -> list[tuple[str | Endpoint, Demand]]:
        """Return what the model is asked at most, a judge aside; [] while the questions aren't known."""
        if self.data.unknown:
            return []
        from dualign.data.questions import rows_as_problems

        asked = Demand.of(rows_as_problems(self.data), self.max_new_tokens, self.tries)
        return [(self.model, asked)]

    def problems(self) -> list[tuple[str, str]]:
        issues = model_problems(self.model, "model") + self._approval_problems()
        message = "rows of think mode have traces already: expected no_think or row"
        issues += [
            (f"data.sources.{number}.mode", message)
            for number, source in enumerate(self.data.sources)
            if source.mode == "think"
        ]
        issues += template_problems("expected", self.expected)
        counts = ("tries", "min_trace_tokens", "max_trace_tokens", "max_new_tokens", "batch_tokens")
        for key in counts:
            value = getattr(self, key)
            if value is not None and value < 1:
                issues.append((key, f"expected 1 or more, found {value}"))
        if self.temperature < 0:
            issues.append(("temperature", f"expected 0 or more, found {self.temperature}"))
        if self.temperature == 0 and self.tries > 1:
            issues.append(
                ("tries", "at temperature 0 every try is the same: set temperature, or 1")
            )
        if not 0 < self.top_p <= 1:
            issues.append(("top_p", f"expected more than 0 and at most 1, found {self.top_p}"))
        low, high = self.min_trace_tokens or 1, self.max_trace_tokens or self.max_new_tokens
        if low > high:
            key = "max_trace_tokens" if self.max_trace_tokens else "max_new_tokens"
            issues.append((key, f"expected min_trace_tokens ({low}) or more, found {high}"))
        if self.trace == "answer" and self.answer == "model":
            message = "trace: answer makes the model's answer the trace: expected row"
            issues.append(("answer", message))
        return issues

    def _approval_problems(self) -> list[tuple[str, str]]:
        """Return what is wrong with who accepts answers: exactly one of verifier and judge."""
        judge, least = self.judge, self.at_least
        if (self.verifier is None) == (judge is None):
            count = "both" if judge else "none"
            return [("judge", f"expected verifier, or judge in its place, found {count}")]
        issues = [] if self.verifier is None else settings_problems(self.verifier)
        scores = isinstance(judge, RubricConfig | RewardModelConfig)
        if scores and least is None:
            issues.append(
                ("at_least", "a judge that scores needs the lowest score that is accepted")
            )
        if not scores and least is not None:
            issues.append(("at_least", "only a judge that scores has a lowest score: remove it"))
        if isinstance(judge, RubricConfig) and least is not None and not judge.has(least):
            low, high = judge.scale
            issues.append(("at_least", f"expected a score of {low:g} to {high:g}, found {least:g}"))
        if judge is not None and self.expected is not None:
            issues.append(
                ("expected", "a judge sees the row's answer: remove it, or take a verifier")
            )
        return issues
