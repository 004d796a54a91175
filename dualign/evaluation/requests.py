"""Requests of an evaluation: each problem in each mode, rendered by the model's own template."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from dualign.data.conversation import MODES, Mode
from dualign.errors import EvaluationError
from dualign.evaluation.config import EvalConfig
from dualign.tasks import Problem, Task

TaskSet = Sequence[tuple[Task, Sequence[Problem]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRequest:
    """One problem for one model in one mode; requests with the same key share their answer."""

    task: Task
    problem: Problem
    mode: Mode
    prompt: str
    limit: int
    seed: int
    key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRequests:
    """All requests to one model, in order. `mode_switch`: the modes have different prompts."""

    items: tuple[EvalRequest, ...]
    mode_switch: bool


def build_requests(
    tokenizer: PreTrainedTokenizerBase,
    tasks: TaskSet,
    config: EvalConfig,
    *,
    name: str,
    seed: int,
) -> EvalRequests:
    """Render every problem in both modes for one model.

    If the template has no mode switch, both modes get the same prompt and think mode's limit, and
    share one greedy answer.

    Args:
        name: identifies the model and its backend; part of each request's key.

    Raises:
        EvaluationError: the template can't render a problem, or the problem sets its mode itself.
    """
    switch = _has_switch(tokenizer)
    items = []
    for task, problems in tasks:
        prompts = {
            mode: [render_question(tokenizer, problem, mode) for problem in problems]
            for mode in MODES
        }
        if switch:
            _require_switch(task, problems, prompts)
        for mode in MODES:
            limit = limit_of(task, config, mode if switch else "think")
            for problem, prompt in zip(problems, prompts[mode], strict=True):
                identity = f"{seed}:{task.name}:{mode}:{problem.id}"
                own_seed = _number(identity) if config.temperature else 0
                content = [name, prompt, limit, config.temperature, config.top_p, own_seed]
                request = EvalRequest(
                    task=task,
                    problem=problem,
                    mode=mode,
                    prompt=prompt,
                    limit=limit,
                    seed=own_seed,
                    key=hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24],
                )
                items.append(request)
    return EvalRequests(items=tuple(items), mode_switch=switch)


def _require_switch(
    task: Task, problems: Sequence[Problem], prompts: Mapping[Mode, Sequence[str]]
) -> None:
    """Refuse a problem with one prompt for both modes although the template has a switch."""
    for problem, *by_mode in zip(problems, *(prompts[mode] for mode in MODES), strict=True):
        if len(set(by_mode)) == 1:
            raise EvaluationError(
                f"task {task.name}, problem {problem.id}: its prompt is the same in both modes, so "
                "its system message sets the mode; remove /think or /no_think from it"
            )


def _has_switch(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the template renders a plain question differently in the two modes."""
    messages = ({"role": "user", "content": "Hi"},)
    plain = Problem(id="a plain question", messages=messages, expected="", extra={})
    think, no_think = (render_question(tokenizer, plain, mode) for mode in MODES)
    return think != no_think


def limit_of(task: Task, config: EvalConfig, mode: Mode) -> int:
    """Return the token limit: the task's before the stage's, no_think's before the general one."""
    think = task.max_new_tokens or config.max_new_tokens
    if mode == "think":
        return think
    task_limit = task.max_new_tokens_no_think or task.max_new_tokens
    return task_limit or config.max_new_tokens_no_think or think


def render_question(tokenizer: PreTrainedTokenizerBase, problem: Problem, mode: Mode) -> str:
    """Render the prompt of a problem in a mode, with the checkpoint's own template."""
    try:
        text = tokenizer.apply_chat_template(
            [dict(turn) for turn in problem.messages],
            add_generation_prompt=True,
            tokenize=False,
            enable_thinking=mode == "think",
        )
    except Exception as error:  # a template can raise anything
        raise EvaluationError(
            f"{tokenizer.name_or_path}: its chat template can't render problem {problem.id} in "
            f"{mode} mode: {error}"
        ) from error
    return str(text)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
