"""The part of a recipe that builds preference pairs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dualign.data.config import QuestionData
from dualign.generation.config import Backend, Endpoint, endpoint_of, model_label, model_problems
from dualign.generation.estimate import Demand
from dualign.judges.config import JudgeConfig
from dualign.switch import Switch
from dualign.tasks.base import Problem
from dualign.tasks.files import template_problems
from dualign.tasks.table import load_problems, load_tasks, source_of
from dualign.verifiers.base import Verifier
from dualign.verifiers.table import VerifierSettings, settings_problems, verifier_of


@dataclass(frozen=True, kw_only=True, slots=True)
class RevisionConfig:
    """A stronger model mends the model's answers with as few changes as it can (CLAIR, arXiv 2408.06266)."""

    model: str | Endpoint
    """who revises: a checkpoint or an endpoint"""
    instruction: str | None = None
    """what is to be better; absent: correct what is wrong"""
    reference: bool = False
    """the reviser sees the right answer: the row's, or what the task's verifier compares with"""
    mode: Literal["think", "no_think"] = "no_think"
    """the mode in which the reviser is asked; its own trace isn't used"""
    max_new_tokens: int | None = None
    """tokens that it writes at most, its own trace included; absent: twice the stage's"""
    temperature: float = 0.0
    """of sampling; 0 is greedy"""
    min_similarity: float = 0.3
    """a revision is dropped below this share of common words (difflib's ratio, trace and answer together);
    0 where answers are a word or two
    """
    max_growth: float = 2.0
    """a revision is dropped above this many times the tokens of the answer"""

    def problems(self) -> list[tuple[str, str]]:
        issues = model_problems(self.model, "model")
        if self.instruction is not None and not self.instruction.strip():
            issues.append(
                ("instruction", "expected a text, found nothing: leave it out, or write one")
            )
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            issues.append(("max_new_tokens", f"expected 1 or more, found {self.max_new_tokens}"))
        if self.temperature < 0:
            issues.append(("temperature", f"expected 0 or more, found {self.temperature}"))
        if not 0 <= self.min_similarity < 1:
            issues.append(
                (
                    "min_similarity",
                    f"expected 0 or more and less than 1, found {self.min_similarity}",
                )
            )
        if self.max_growth <= 0:
            issues.append(("max_growth", f"expected more than 0, found {self.max_growth}"))
        return issues


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedRows(QuestionData):
    """Rows whose questions are asked, in any shape of docs/data.md."""

    verifier: VerifierSettings | None = None
    """what tells right answers from wrong ones (docs/verifiers.md): its name, or keys with its `kind`"""
    expected: str | None = None
    """what the verifier compares with, with fields of the file's row in braces; absent: the row's answer"""

    @property
    def check(self) -> Verifier | None:
        """The verifier with its settings."""
        return None if self.verifier is None else verifier_of(self.verifier)

    def problems(self) -> list[tuple[str, str]]:
        issues = QuestionData.problems(self) + template_problems("expected", self.expected)
        if self.verifier is not None:
            issues += settings_problems(self.verifier)
        elif self.expected is not None:
            issues.append(("expected", "is what a verifier compares with: name one, or remove it"))
        return issues


@dataclass(frozen=True, kw_only=True, slots=True)
class PairsStage:
    """Preference pairs from a checkpoint: right against wrong, or a strong model against a weak."""

    name: str
    """names the stage and its run directory"""
    model: str | Endpoint
    """the checkpoint or endpoint that answers; with rejected_model, the one that writes the chosen answers"""
    tasks: tuple[str, ...] = ()
    """task files: prompts, expected answers and a verifier; tasks, data or both are asked"""
    data: AskedRows | None = None
    """rows of sources: the last answer of each is asked for anew"""
    kind: Literal["pairs"] = "pairs"
    """what the stage does"""
    rejected_model: str | Endpoint | None = None
    """writes the rejected answers, like SmolLM3's weak model; absent: a verifier sorts the samples"""
    chosen: Literal["row"] | None = None
    """row: the answer that stands in the row is chosen, in the row's mode, and model writes the rejected
    one; absent: models write both
    """
    revise: RevisionConfig | None = None
    """another model mends the wrong answers, and its revisions are the chosen ones"""
    judge: JudgeConfig | None = None
    """what sorts samples that no verifier can sort (docs/judges.md); with two models, chosen: row or
    revise, pairs that it doesn't find right are dropped
    """
    modes: tuple[Literal["think", "no_think"], ...] = ("think", "no_think")
    """each mode gets its own pairs"""
    rows: int | None = None
    """at most this many prompts of each task"""
    samples: int = 4
    """answers sampled for each prompt and mode; with rejected_model one of each model, or with a judge or
    length: matched this many
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
    def is_two_sided(self) -> bool:
        """Whether chosen and rejected answers have sources of their own."""
        return self.rejected_model is not None or self.chosen is not None

    @property
    def checks_tasks(self) -> bool:
        """Whether the verifiers of tasks say which answers are right."""
        return self.rejected_model is None or self.judge is not None

    @property
    def is_scored(self) -> bool:
        """Whether something scores all samples."""
        if self.judge is not None:
            return True
        checked = self.data is None or self.data.verifier is not None
        return self.rejected_model is None and checked

    @property
    def samples_asked(self) -> int:
        """Answers that each model is asked for, of each prompt in each mode."""
        several = self.is_scored or self.length == "matched"
        return self.samples if several or not self.is_two_sided else 1

    @property
    def _answers_judged(self) -> int:
        """Answers of a prompt that the judge sees together."""
        if self.revise is not None:
            return 2
        if self.chosen is not None:
            return self.samples_asked + 1
        return self.samples_asked * (1 if self.rejected_model is None else 2)

    @property
    def revision_tokens(self) -> int:
        """Tokens that the reviser writes at most."""
        own = None if self.revise is None else self.revise.max_new_tokens
        return own or 2 * self.max_new_tokens

    def problems(self) -> list[tuple[str, str]]:
        issues = model_problems(self.model, "model")
        if self.rejected_model is not None:
            issues += model_problems(self.rejected_model, "rejected_model")
        issues += self._clashes()
        if len(set(self.modes)) < max(1, len(self.modes)):
            shown = ", ".join(self.modes) or "none"
            issues.append(("modes", f"expected think, no_think or both, once each; found {shown}"))
        if self.temperature == 0 and self.samples_asked > 1:
            issues.append(("temperature", "greedy samples are all alike: expected more than 0"))
        if self.temperature < 0:
            issues.append(("temperature", f"expected 0 or more, found {self.temperature}"))
        if not 0 < self.top_p <= 1:
            issues.append(("top_p", f"expected more than 0 and at most 1, found {self.top_p}"))
        for name in ("samples", "pairs_per_prompt", "max_new_tokens", "batch_tokens"):
            if getattr(self, name) < 1:
                issues.append((name, f"expected 1 or more, found {getattr(self, name)}"))
        return issues

    def _clashes(self) -> Iterator[tuple[str, str]]:
        """Yield keys that say two things about what stands against what, or none."""
        if not self.tasks and self.data is None:
            yield "tasks", "nothing is asked: name task files, or rows with data"
        writers = {
            "rejected_model": self.rejected_model,
            "chosen": self.chosen,
            "revise": self.revise,
        }
        first, *others = [name for name, value in writers.items() if value is not None] or [""]
        for name in others:
            yield name, f"{first} says what stands against what already: remove one of the two"
        if not self.checks_tasks and self.data and self.data.verifier is not None:
            message = "a strong and a weak model are compared without one: remove it"
            yield "data.verifier", message
        if self.chosen is not None:
            yield from self._clashes_with_row()
        if self.choose is not None and (self.revise is not None or not self.is_scored):
            yield "choose", "nothing scores what is chosen from: remove choose"
        if first:
            return
        if self.samples < 2:
            yield "samples", "right against wrong needs 2 samples or more"
        if not self.is_scored:
            message = (
                "nothing tells right answers from wrong ones: name a verifier, or rejected_model, "
            )
            yield "data.verifier", f"{message}chosen: row, or revise"

    def _clashes_with_row(self) -> Iterator[tuple[str, str]]:
        if self.tasks:
            message = (
                "a task has what its verifier compares with, and no answer: ask rows with data"
            )
            yield "tasks", message
        if self.pairs_per_prompt > 1:
            yield "pairs_per_prompt", "a row has one answer, which makes one pair: remove it"

    def in_words(self) -> str:
        """Describe what will be asked at most, for `dualign plan`."""
        return "\n".join(self._words())

    def demands(self) -> list[tuple[str | Endpoint, Demand]]:
        """Return what each model is asked at most, a judge aside; [] while questions aren't known."""
        if self._unknown():
            return []
        problems, modes = self._problems(), 1 if self.chosen else len(self.modes)
        asked = Demand.of(problems, self.max_new_tokens, modes * self.samples_asked)
        demands = [(m, asked) for m in (self.model, self.rejected_model) if m is not None]
        return demands + self._revisions(problems)

    def _revisions(self, problems: list[Problem]) -> list[tuple[str | Endpoint, Demand]]:
        if self.revise is None:
            return []
        count = len(self.modes) * self.pairs_per_prompt
        revised = Demand.of(problems, self.revision_tokens, count)
        # Each request shows an answer.
        revised += Demand(prompt_tokens=len(problems) * count * self.max_new_tokens)
        return [(self.revise.model, revised)]

    def _words(self) -> Iterator[str]:
        if unknown := self._unknown():
            yield f"questions: {unknown}"
            return
        problems, modes = self._problems(), 1 if self.chosen else len(self.modes)
        yield f"prompts: {len(problems) * modes:,} at most"
        revisions = 0 if self.revise is None else 1
        demands = self.demands()
        for number, (model, asked) in enumerate(demands, start=1):
            what = "revisions" if number > len(demands) - revisions else "answers"
            yield _in_words(model, asked, what)
        if self.judge is not None:
            yield self.judge.in_words(
                problems * modes * (1 if self.revise is None else self.pairs_per_prompt),
                answers=self._answers_judged,
                answer_tokens=self.max_new_tokens,
            )

    def _unknown(self) -> str:
        """Why questions can't be counted before the stage runs, in words; "" if they can."""
        if not all(source_of(task) or Path(task).is_file() for task in self.tasks):
            return "known when the task files are there"
        return "" if self.data is None else self.data.unknown

    def _problems(self) -> list[Problem]:
        """Return what is asked, in one mode."""
        from dualign.data.questions import rows_as_problems

        tasks = load_tasks(self.tasks)
        problems = [item for task in tasks for item in load_problems(task, limit=self.rows)]
        return problems + ([] if self.data is None else rows_as_problems(self.data))


def _in_words(model: str | Endpoint, asked: Demand, what: str) -> str:
    """Return what a model is asked at most; of an endpoint also what it costs."""
    if endpoint := endpoint_of(model):
        return f"{what} of {asked.in_words(endpoint)}"
    tokens = asked.answer_tokens // max(1, asked.requests)
    return f"{what} of {model_label(model)}: {asked.requests:,} of {tokens:,} tokens at most"
