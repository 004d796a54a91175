"""The `retain:` block of a training stage. Nothing heavy is imported: recipes load from here."""

from dataclasses import dataclass
from typing import Literal

from dualign.data.config import SourceConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RetainBound:
    """How much may be lost, of each task and mode; watched tasks aren't bound."""

    accuracy: float | None = None
    """the least change that is allowed, such as -0.05; broken if it is less, and the interval excludes 0"""
    loss: float | None = None
    """the largest rise of the loss on held-out rows, in nats a token"""
    kl: float | None = None
    """the largest KL(start || now), in nats a token"""

    def problems(self) -> list[tuple[str, str]]:
        if self.accuracy is self.loss is self.kl is None:
            return [("", "the bound is empty: expected accuracy, loss or kl")]
        issues = []
        if self.accuracy is not None and not -1 <= self.accuracy <= 0:
            issues.append(("accuracy", f"expected a change of -1 to 0, found {self.accuracy:g}"))
        for key in ("loss", "kl"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                issues.append((key, f"expected more than 0, found {value:g}"))
        return issues


@dataclass(frozen=True, kw_only=True, slots=True)
class RetainConfig:
    """What the model could do before, measured in both modes while it trains."""

    tasks: tuple[str, ...] = ()
    """task files of what it could do before: asked at the start, every so many steps, at the end"""
    watch: tuple[str, ...] = ()
    """task files of what it learns: measured alike"""
    held_out: tuple[str | SourceConfig, ...] = ()
    """rows of what it could do before, each a file, or a source with keys: their loss, and KL to the start"""
    prompts: tuple[str, ...] = ()
    """questions whose answers in both modes are shown in the log and the report"""
    rows: int = 20
    """at most so many problems of each task and rows of each file, drawn by the seed"""
    every: int | None = None
    """measure after so many steps again; absent: at the start and the end"""
    bound: RetainBound | None = None
    """how much of it may be lost; a step that loses more isn't published"""
    on_bound: Literal["stop", "best"] = "stop"
    """a step beyond the bound: stop there; best: train on. Both publish the best step within it, by
    early_stopping.metric or else the last
    """
    max_new_tokens: int = 256
    """limit of an answer in think mode, where the task has none of its own"""
    max_new_tokens_no_think: int | None = None
    """limit of an answer in no_think mode; absent: max_new_tokens"""
    batch_tokens: int = 16384
    """tokens in memory at once while it answers: rows of a batch times (longest prompt + limit)"""

    def problems(self) -> list[tuple[str, str]]:
        issues = []
        if not (self.tasks or self.watch or self.held_out or self.prompts):
            message = "nothing to measure: expected tasks, watch, held_out or prompts"
            issues.append(("tasks", message))
        bound = self.bound or RetainBound()
        if bound.accuracy is not None and not self.tasks:
            issues.append(("bound.accuracy", "is of tasks, and there are none"))
        if bound.loss is not None and not self.held_out:
            issues.append(("bound.loss", "is of held_out rows, and there are none"))
        if bound.kl is not None and not (self.held_out or self.tasks):
            issues.append(
                ("bound.kl", "is along held_out rows and answers to tasks: there are none")
            )
        for key in ("rows", "every", "max_new_tokens", "max_new_tokens_no_think", "batch_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                issues.append((key, f"expected 1 or more, found {value}"))
        return issues
