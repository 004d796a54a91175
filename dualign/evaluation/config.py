"""Configuration of an evaluation stage. Nothing heavy is imported: recipes load from here."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal

from dualign.data.config import SourceConfig
from dualign.generation.config import Backend, Endpoint, endpoint_of, model_label, model_problems
from dualign.generation.estimate import Demand
from dualign.switch import Switch
from dualign.tasks.base import Problem, Task
from dualign.tasks.suites import suite_problem
from dualign.tasks.table import load_problems, load_tasks, unknown_tasks


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Tasks and generation settings."""

    tasks: tuple[str, ...] = ()
    """task files, or benchmarks by name as `SOURCE:NAME` (docs/benchmarks.md)"""
    rows: int | None = None
    """at most this many rows of each task, drawn by the seed; absent: all"""
    max_new_tokens: int = 512
    """limit of an answer in think mode, thinking included"""
    max_new_tokens_no_think: int | None = None
    """limit of an answer in no_think mode; absent: max_new_tokens"""
    samples: int | None = None
    """answers to each problem, each with a seed of its own; absent: 1 (docs/evaluation.md)"""
    samples_no_think: int | None = None
    """answers to each problem in no_think mode; absent: samples"""
    temperature: float = 0.0
    """0 takes the most likely token; above 0 samples"""
    temperature_no_think: float | None = None
    """temperature in no_think mode; absent: temperature"""
    top_p: float = 1.0
    """sample from the most likely tokens that together have this probability"""
    top_p_no_think: float | None = None
    """top_p in no_think mode; absent: top_p"""
    top_k: int | None = None
    """sample from this many of the most likely tokens; absent: from all"""
    top_k_no_think: int | None = None
    """top_k in no_think mode; absent: top_k"""
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
                ("samples", self.samples),
                ("samples_no_think", self.samples_no_think),
                ("top_k", self.top_k),
                ("top_k_no_think", self.top_k_no_think),
                ("batch_tokens", self.batch_tokens),
            )
            if value is not None and value < 1
        ]
        return problems + list(_sampling_problems(self))


def limit_of(task: Task, config: EvalConfig, mode: str) -> int:
    """Return the token limit: the task's before the stage's, no_think's before the general one."""
    think = task.max_new_tokens or config.max_new_tokens
    if mode == "think":
        return think
    task_limit = task.max_new_tokens_no_think or task.max_new_tokens
    return task_limit or config.max_new_tokens_no_think or think


def samples_of(problem: Problem, config: EvalConfig, mode: str) -> int:
    """Return how many answers a problem gets in a mode: its own number, where the mode samples."""
    own = problem.samples if _in_mode(config, "temperature", mode) else None
    return own or _in_mode(config, "samples", mode) or 1


def sampling_of(task: Task, config: EvalConfig, mode: str) -> dict[str, Any]:
    """Return the arguments of `Sampling` for a task in a mode; a greedy one has none but limits."""
    keys = ("temperature", "top_p", "top_k") if _in_mode(config, "temperature", mode) else ()
    limit = {"max_new_tokens": limit_of(task, config, mode)}
    return limit | {key: _in_mode(config, key, mode) for key in keys}


def _in_mode(config: EvalConfig, key: str, mode: str) -> Any:
    own = getattr(config, f"{key}_no_think") if mode == "no_think" else None
    return getattr(config, key) if own is None else own


def _sampling_problems(config: EvalConfig) -> Iterator[tuple[str, str]]:
    for end in ("", "_no_think"):
        temperature, top_p = (getattr(config, f"{key}{end}") for key in ("temperature", "top_p"))
        if temperature is not None and not 0 <= temperature < inf:  # nan is neither
            yield f"temperature{end}", f"expected 0 or more, found {temperature}"
        if top_p is not None and not 0 < top_p <= 1:
            yield f"top_p{end}", f"expected more than 0 and at most 1, found {top_p}"
    for mode in ("think", "no_think"):
        if _in_mode(config, "temperature", mode) <= 0:
            yield from _greedy_problems(config, mode)


def _greedy_problems(config: EvalConfig, mode: str) -> Iterator[tuple[str, str]]:
    """Yield what a mode without luck has no use for, by the key that says it."""
    end = "" if mode == "think" else "_no_think"
    other_samples = mode == "think" and (config.temperature_no_think or 0) > 0
    for key, idle in (("top_p", 1.0), ("top_k", None)):
        value = getattr(config, f"{key}{end}")
        is_used = other_samples and getattr(config, f"{key}_no_think") is None
        if value not in (None, idle) and not is_used:
            name = f"{key}{end}"
            yield name, f"{value} has no effect at temperature 0; set temperature or remove {name}"
    count, own = _in_mode(config, "samples", mode) or 1, getattr(config, f"samples{end}")
    # What makes both modes greedy is said of think alone.
    if count > 1 and (mode == "think" or own or config.temperature > 0):
        remedy = "or remove samples" if mode == "think" else "or samples_no_think: 1"
        yield (
            f"samples{end}" if own else "samples",
            f"{mode} is greedy, so its {count} answers to a problem would be equal; set "
            f"temperature{end} above 0, {remedy}",
        )


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
    suite: str | None = None
    """a suite of benchmarks by name, such as smollm3: its tasks and settings, besides what is set here
    (docs/benchmarks.md)
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
        if self.suite is not None and (unknown := suite_problem(self.suite)):
            return [*problems, ("suite", unknown)]
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
        if not self.budget_tokens:
            return problems
        endpoints = [(i, each) for i, m in enumerate(self.models) if (each := endpoint_of(m))]
        problems += [
            (f"models.{i}", problem)
            for i, endpoint in endpoints
            if (problem := endpoint.budget_problem)
        ]
        problems += [
            (
                f"models.{i}",
                f"body sends {endpoint.thinking_budget_field} with every request, so "
                "answers without a budget would have one: remove it",
            )
            for i, endpoint in endpoints
            if endpoint.bounds_whole_traces
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
        demand = self._demand()
        return "\n".join(demand.in_words(endpoint) for endpoint in endpoints)

    def demands(self) -> list[tuple[str | Endpoint, Demand]]:
        """Return what each model is asked at most; [] while its tasks aren't known."""
        if unknown_tasks(self.tasks):
            return []
        return [(model, self._demand()) for model in self.models]

    def _demand(self) -> Demand:
        """Return what one model is asked at most."""
        demand = Demand()
        for task in load_tasks(self.tasks):
            problems = load_problems(task, limit=self.rows)
            for mode in ("think", "no_think"):
                limit, count = limit_of(task, self, mode), samples_of(problems[0], self, mode)
                demand += Demand.of(problems, limit, count)
            for tokens in self.budget_tokens:
                limit = tokens + limit_of(task, self, "no_think")
                demand += Demand.of(problems, limit, samples_of(problems[0], self, "think"))
        return demand
