"""What an evaluation asks: each problem in each mode, as the model's own template renders it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from dualign.data.conversation import MODES, Mode
from dualign.errors import EvaluationError
from dualign.evaluation.config import EvalSettings
from dualign.tasks import Problem, Task

Asked = Sequence[tuple[Task, Sequence[Problem]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One problem, put to one model in one mode. Requests with one key have one answer."""

    task: Task
    problem: Problem
    mode: Mode
    prompt: str
    limit: int
    seed: int
    key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Requests:
    """All requests to one model, in order. `mode_switch`: the prompts of the modes differ."""

    items: tuple[Request, ...]
    mode_switch: bool


def build_requests(
    tokenizer: PreTrainedTokenizerBase, asked: Asked, stage: EvalSettings, *, name: str, seed: int
) -> Requests:
    """The requests of a stage to one model.

    Where the template knows no modes, both modes get the same prompt and the limit of think mode,
    and greedy answers are made once for both.

    Args:
        name: what tells the model and its backend apart from others; part of each request's key.

    Raises:
        EvaluationError: the template can't render a problem, or the problem says its mode itself.
    """
    places = [
        (task, problem, mode) for task, problems in asked for mode in MODES for problem in problems
    ]
    prompts = [render_question(tokenizer, problem, mode) for _, problem, mode in places]
    by_place = {
        (task.name, problem.id, mode): prompt
        for (task, problem, mode), prompt in zip(places, prompts, strict=True)
    }
    switch = _has_switch(tokenizer)
    for task, problem, _ in places:
        both = {by_place[task.name, problem.id, mode] for mode in MODES}
        if switch and len(both) == 1:
            raise EvaluationError(
                f"task {task.name}, problem {problem.id}: its prompt is the same in both modes, so its system message says "
                "the mode itself; take /think or /no_think out of it"
            )
    items = []
    for (task, problem, mode), prompt in zip(places, prompts, strict=True):
        limit = limit_of(task, stage, mode if switch else "think")
        drawn = _number(f"{seed}:{task.name}:{mode}:{problem.id}") if stage.temperature else 0
        key = _key([name, prompt, limit, stage.temperature, stage.top_p, drawn])
        items.append(
            Request(
                task=task,
                problem=problem,
                mode=mode,
                prompt=prompt,
                limit=limit,
                seed=drawn,
                key=key,
            )
        )
    return Requests(items=tuple(items), mode_switch=switch)


def _has_switch(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template knows modes, by a question that says none itself."""
    plain = ({"role": "user", "content": "Hi"},)
    asked = Problem(id="a plain question", messages=plain, expected="", extra={})
    think, no_think = (render_question(tokenizer, asked, mode) for mode in MODES)
    return think != no_think


def limit_of(task: Task, stage: EvalSettings, mode: Mode) -> int:
    """The token limit: the task's own before the stage's, and no_think's before the general one."""
    think = task.max_new_tokens or stage.max_new_tokens
    if mode == "think":
        return think
    own = task.max_new_tokens_no_think or task.max_new_tokens
    return own or stage.max_new_tokens_no_think or think


def render_question(tokenizer: PreTrainedTokenizerBase, problem: Problem, mode: Mode) -> str:
    """The prompt of a problem in a mode, by the checkpoint's own template."""
    try:
        text = tokenizer.apply_chat_template(
            [dict(turn) for turn in problem.messages],
            add_generation_prompt=True,
            tokenize=False,
            enable_thinking=mode == "think",
        )
    except Exception as error:  # jinja2 raises what the template makes it raise
        raise EvaluationError(
            f"{tokenizer.name_or_path}: its chat template can't render problem {problem.id} in "
            f"{mode} mode: {error}"
        ) from error
    return str(text)


def _key(content: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
