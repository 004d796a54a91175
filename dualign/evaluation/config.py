"""Configuration of an evaluation stage. Nothing heavy is imported: recipes load from here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dualign.data.config import SourceConfig
from dualign.generation.config import Backend, Endpoint, endpoint_of, model_label, model_problems
from dualign.generation.estimate import Demand
from dualign.switch import Switch
from dualign.tasks.base import Task
from dualign.tasks.table import load_problems, load_tasks, unknown_tasks


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Tasks and generation settings."""

    tasks: tuple[str, ...]
    """task files"""
    rows: int | None = None
    """at most this many rows of each task, drawn by the seed; absent: all"""
    max_new_tokens: int = 512
    """limit of an answer in think mode, thinking included"""
    max_new_tokens_no_think: int | None = None
    """limit of an answer in no_think mode; absent: max_new_tokens"""
    temperature: float = 0.0
    """0 takes the most likely token; above 0 samples"""
    top_p: float = 1.0
    """sample from the most likely tokens that together have this probability"""
    batch_tokens: int = 32768
    """tokens in memory at once: rows of a batch times (longest prompt + limit)"""
    backend: Backend = "transformers"
    """the engine that generates; vllm has to be installed"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """type of the weights; auto: as saved on an accelerator, float32 on a CPU"""
    switch: Switch | None = None
    """what switches the modes; absent: that of each model's template; {}: the models have no modes"""

    def problems(self) -> list[tuple[str, str]]:
        problems = [] if self.tasks else [("tasks", "expected one or more, found none")]
        problems += [
            (key, f"expected 1 or more, found {value}")
            for key, value in (
                ("rows", self.rows),
                ("max_new_tokens", self.max_new_tokens),
                ("max_new_tokens_no_think", self.max_new_tokens_no_think),
                ("batch_tokens", self.batch_tokens),
            )
            if value is not None and value < 1
        ]
        if self.temperature < 0:
            problems.append(("temperature", f"expected 0 or more, found {self.temperature}"))
        if not 0 < self.top_p <= 1:
            problems.append(("top_p", f"expected more than 0 and at most 1, found {self.top_p}"))
        if self.temperature == 0 and self.top_p < 1:
            useless = (
                f"{self.top_p} has no effect at temperature 0; set temperature or remove top_p"
            )
            problems.append(("top_p", useless))
        return problems


def limit_of(task: Task, config: EvalConfig, mode: str) -> int:
    """Return the token limit: the task's before the stage's, no_think's before the general one."""
    think = task.max_new_tokens or config.max_new_tokens
    if mode == "think":
        return think
    task_limit = task.max_new_tokens_no_think or task.max_new_tokens
    return task_limit or config.max_new_tokens_no_think or think


def pairs_name(pairs: str | SourceConfig) -> str:
    """Return the name of preference pairs in tables and in metrics.json."""
    if isinstance(pairs, str):
        return Path(pairs).stem
    return pairs.label or Path(pairs.path).stem


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalStage(EvalConfig):
    """Every model answers every task in think and in no_think mode."""

    name: str
    """name of the stage and of its folder"""
    kind: Literal["eval"] = "eval"
    """this kind of stage"""
    models: tuple[str | Endpoint, ...]
    """run directories, model or adapter folders, hub ids, endpoints (docs/endpoints.md); the last
    one is the result
    """
    pairs: tuple[str | SourceConfig, ...] = ()
    """preference pairs, each a file, or a source with keys: how often, and by how much, each model
    prefers the chosen answer
    """
    budgets: tuple[int | Literal["none"], ...] = ()
    """tokens after which traces are closed, for accuracy and tokens at each (docs/budgets.md), such as
    [0, 128, 512, none]; answers without a budget are measured anyway
    """
    budget_closing: str | None = None
    """what closes a trace at a budget; absent: what the template writes between a trace and its answer"""

    @property
    def budget_tokens(self) -> tuple[int, ...]:
        """The budgets that are numbers, the smallest first."""
        return tuple(sorted(budget for budget in self.budgets if isinstance(budget, int)))

    def problems(self) -> list[tuple[str, str]]:
        problems = [] if self.models else [("models", "expected one or more, found none")]
        problems += [
            issue
            for i, model in enumerate(self.models)
            for issue in model_problems(model, f"models.{i}")
        ]
        if len(set(map(model_label, self.models))) < len(self.models):
            problems.append(("models", "names a model twice"))
        if self.pairs and any(map(endpoint_of, self.models)):
            problems.append(
                ("pairs", "an endpoint gives no log-probabilities of whole answers: remove pairs")
            )
        if len({pairs_name(source) for source in self.pairs}) < len(self.pairs):
            problems.append(
                ("pairs", "two files have the same name; tables couldn't tell them apart")
            )
        return problems + self._budget_problems() + EvalConfig.problems(self)

    def _budget_problems(self) -> list[tuple[str, str]]:
        problems = [
            (f"budgets.{i}", f"expected 0 or more tokens, or none, found {budget}")
            for i, budget in enumerate(self.budgets)
            if budget != "none" and (type(budget) is not int or budget < 0)
        ]
        if len(set(self.budgets)) < len(self.budgets):
            problems.append(("budgets", "names a budget twice"))
        if self.budgets and not self.budget_tokens and not problems:
            problems.append(("budgets", "none is measured anyway: expected a number of tokens"))
        if self.budget_closing is not None and not self.budget_tokens:
            problems.append(("budget_closing", "has no effect without budgets"))
        endpoints = [(i, each) for i, m in enumerate(self.models) if (each := endpoint_of(m))]
        if not self.budget_tokens:
            return problems
        problems += [
            (
                f"models.{i}",
                "has no thinking_budget_field, which names the request's field for budgets: "
                "thinking_token_budget (vLLM), thinking_budget_tokens (llama.cpp), "
                "custom_params.thinking_budget (SGLang)",
            )
            for i, endpoint in endpoints
            if endpoint.thinking_budget_field is None
        ]
        if endpoints and self.budget_closing is not None:
            problems.append(
                ("budget_closing", "a server closes traces in its own words: remove it")
            )
        return problems

    def in_words(self) -> str:
        """Describe what endpoints will be asked, for `dualign plan`; "" without any."""
        endpoints = [endpoint for model in self.models if (endpoint := endpoint_of(model))]
        if not endpoints:
            return ""
        if unknown := unknown_tasks(self.tasks):
            return f"questions: {unknown}"
        demand = Demand()
        for task in load_tasks(self.tasks):
            problems = load_problems(task, limit=self.rows)
            for mode in ("think", "no_think"):
                demand += Demand.of(problems, limit_of(task, self, mode))
            for tokens in self.budget_tokens:
                demand += Demand.of(problems, tokens + limit_of(task, self, "no_think"))
        return "\n".join(map(demand.in_words, endpoints))
