"""Requests of an evaluation: each problem in each mode, rendered by the model's own template."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dualign.data.conversation import MODES, Mode
from dualign.errors import EvaluationError
from dualign.evaluation.config import EvalConfig, samples_of, sampling_of
from dualign.generation.answers import (
    AnswerRequest,
    LikelihoodResponder,
    Prompt,
    Responder,
    request_key,
)
from dualign.generation.sampling import Sampling
from dualign.models import prompts
from dualign.switch import Switch
from dualign.tasks.base import Problem, Task

TaskSet = Sequence[tuple[Task, Sequence[Problem]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRequest:
    """One problem for one model in one mode; requests with the same key share their answer."""

    task: Task
    problem: Problem
    mode: Mode
    answer: AnswerRequest
    sample: int | None = None
    """number of the answer to its problem; None if the problem has one answer"""
    more: tuple[AnswerRequest, ...] = ()
    """repeats that are judged together with the answer; or, of texts that follow different prompts,
    those of the prompts after the first
    """
    writes: bool = True
    """False: nothing is written before the problem's texts are scored"""
    begun: str = ""
    """the start of the answer, where it comes after the trace"""

    @property
    def asked(self) -> tuple[AnswerRequest, ...]:
        """What is to be written."""
        return (self.answer, *self.more) if self.writes else ()


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRequests:
    """All requests to one model, in order. `mode_switch`: the modes have different prompts."""

    items: tuple[EvalRequest, ...]
    mode_switch: bool


def build_requests(
    responder: Responder,
    tasks: TaskSet,
    config: EvalConfig,
    *,
    name: str,
    seed: int,
    baseline: bool = False,
) -> EvalRequests:
    """Render every problem in both modes for one model.

    A model without modes (a baseline, or `switch: {}`) gets the same prompt and think mode's limit
    in both, and shares one greedy answer.

    Args:
        name: identifies the model and its backend; part of each request's key.
        baseline: the model may have no modes.

    Raises:
        EvaluationError: the template can't render a problem, the problem sets its mode itself, or
        nothing switches the modes.
    """
    items, all_switch = [], True
    for task, problems in tasks:
        _require_able(responder, task, problems)
        switch = task_switch(responder, task, config.switch)
        has_modes = _has_modes(responder, task, switch, config, baseline=baseline)
        all_switch = all_switch and has_modes
        prompt_of = partial(_prompt, responder, switch=switch, has_modes=has_modes)
        asked = {mode: [prompt_of(problem, mode) for problem in problems] for mode in MODES}
        if has_modes:
            _require_switch(task, problems, asked)
        for mode in MODES:
            # A model without modes is asked in think mode's way.
            sampling_mode: Mode = mode if has_modes else "think"
            thinks = has_modes and mode == "think"
            for problem, prompt in zip(problems, asked[mode], strict=True):
                sampling = _sampling(problem, task, config, sampling_mode)
                parts = [prompt, *_more(problem, prompt, prompt_of)]
                prompted = any(choice.messages for choice in problem.choices)
                writes = not problem.choices or (thinks and prompted)
                # Scores of texts are the same each time.
                count = samples_of(problem, config, sampling_mode) if writes else 1
                identity = f"{seed}:{task.name}:{mode}:{problem.id}"
                for number in range(count):
                    answer, *more = _requests(parts, sampling, identity, number, name)
                    if not writes:  # its line must not pass for an answer to the same prompt
                        answer = replace(answer, key=request_key([answer.key, "unwritten"]))
                    items.append(
                        EvalRequest(
                            task=task,
                            problem=problem,
                            mode=mode,
                            answer=answer,
                            sample=number if count > 1 else None,
                            more=tuple(more),
                            writes=writes,
                            begun=problem.begun if thinks else "",
                        )
                    )
    return EvalRequests(items=tuple(items), mode_switch=all_switch)


def _requests(
    parts: Sequence[Prompt], sampling: Sampling, identity: str, number: int, name: str
) -> list[AnswerRequest]:
    """Return a request for each prompt of a problem, each with draws of its own."""
    places = (f"{identity}\n{place}" if place else identity for place in range(len(parts)))
    return [
        _request(part, sampling, place, number, name)
        for part, place in zip(parts, places, strict=True)
    ]


def _prompt(
    responder: Responder, problem: Problem, mode: Mode, *, switch: Switch | None, has_modes: bool
) -> Prompt:
    """Render a problem; the start of its answer is a turn, unless a trace has to come before it."""
    if problem.begun and not (has_modes and mode == "think"):
        start = {"role": "assistant", "content": problem.begun}
        problem = replace(problem, messages=(*problem.messages, start))
    return render_question(responder, problem, mode, switch)


def _sampling(problem: Problem, task: Task, config: EvalConfig, mode: Mode) -> Sampling:
    """Return how an answer is sampled: by the stage, where it leaves it open by the problem's own rules."""
    sampling, own = Sampling(**sampling_of(task, config, mode)), problem.sampling
    if own is None:
        return sampling
    if not sampling.temperature:
        sampling = replace(sampling, temperature=own.temperature, top_p=own.top_p)
    of_stage = config.max_new_tokens if mode == "think" else config.max_new_tokens_no_think or 0
    return replace(sampling, stop=own.stop, max_new_tokens=max(of_stage, own.max_new_tokens))


def _more(
    problem: Problem, prompt: Prompt, prompt_of: Callable[[Problem, Mode], Prompt]
) -> list[Prompt]:
    """Return what is asked after a problem's prompt: it again, or the other prompts of its texts."""
    if problem.sampling is not None:
        return [prompt] * (problem.sampling.repeats - 1)
    others = (replace(problem, messages=messages) for messages in problem.contexts[1:])
    return [prompt_of(other, prompt.mode) for other in others]


def _request(
    prompt: Prompt, sampling: Sampling, identity: str, number: int, name: str
) -> AnswerRequest:
    """Return the request of one answer; the first of several is that of a single one."""
    own_seed = _number(f"{identity}\nsample {number}" if number else identity)
    if not sampling.temperature:
        own_seed = 0
    content = [
        *(name, prompt.text, sampling.max_new_tokens, sampling.temperature, sampling.top_p),
        own_seed,
        *([] if sampling.top_k is None else [f"top_k {sampling.top_k}"]),
        *(f"stop {text}" for text in sampling.stop),
    ]
    return AnswerRequest(prompt=prompt, sampling=sampling, seed=own_seed, key=request_key(content))


def _require_able(responder: Responder, task: Task, problems: Sequence[Problem]) -> None:
    """Refuse a task that needs more than answers of a responder that gives no more."""
    special = any(problem.choices or problem.begun for problem in problems)
    if special and not isinstance(responder, LikelihoodResponder):
        raise EvaluationError(
            f"{responder.model}, task {task.name}: it scores texts, or goes on from the start of an "
            "answer, which an endpoint can't: name the checkpoint, or a task whose answers are written"
        )


def _require_switch(
    task: Task, problems: Sequence[Problem], asked: Mapping[Mode, Sequence[Prompt]]
) -> None:
    """Refuse a problem with one prompt for both modes although the template has a switch."""
    for problem, *by_mode in zip(problems, *(asked[mode] for mode in MODES), strict=True):
        if len({prompt.text for prompt in by_mode}) == 1:
            raise EvaluationError(
                f"task {task.name}, problem {problem.id}: its prompt is the same in both modes, so "
                "its system message sets the mode; remove /think or /no_think from it. If the template "
                "forgets the switch where there is a system message, name another way with switch"
            )


def task_switch(responder: Responder, task: Task, of_stage: Switch | None) -> Switch | None:
    """Return what switches the modes of a task: its own switch, the stage's, or the model's."""
    return responder.switch_of(task.switch if task.switch is not None else of_stage)


def _has_modes(
    responder: Responder,
    task: Task,
    switch: Switch | None,
    config: EvalConfig,
    *,
    baseline: bool,
) -> bool:
    """Return whether a plain question is asked in two ways; refuse one way if nobody says so."""
    differ = prompts_differ(responder, switch)
    named = task.switch if task.switch is not None else config.switch
    no_modes = (named is not None and not named) or responder.without_modes
    if not (differ or baseline or no_modes):
        raise EvaluationError(
            f"{responder.model}, task {task.name}: {prompts.one_prompt(named)}. "
            "A model without modes is asked once with switch: {}, or as a baseline before the last model"
        )
    return differ


def prompts_differ(responder: Responder, switch: Switch | None) -> bool:
    """Return whether a plain question has another prompt in each mode."""
    messages = ({"role": "user", "content": "Hi"},)
    plain = Problem(id="a plain question", messages=messages, expected="", extra={})
    return len({render_question(responder, plain, mode, switch).text for mode in MODES}) > 1


def render_question(
    responder: Responder, problem: Problem, mode: Mode, switch: Switch | None
) -> Prompt:
    """Return the prompt of a problem in a mode; a checkpoint renders it with its own template.

    Raises:
        EvaluationError: the template can't render it, or its length isn't set (`evaluation.sizing`).
    """
    if problem.sizing is not None:
        raise EvaluationError(
            f"{responder.model}: problem {problem.id} has a length in tokens, which only evaluations, "
            "sweeps, experiments and retain set; take another task here"
        )
    try:
        prompt = responder.prompt(problem.messages, mode, switch, problem.tools)
        plain = responder.prompt(problem.messages, mode, switch) if problem.tools else None
    except Exception as error:  # a template can raise anything
        raise EvaluationError(
            f"{responder.model}: its chat template can't render problem {problem.id} in "
            f"{mode} mode: {error}"
        ) from error
    # An earlier call has the name of a function, too.
    printed = plain is None or plain.text != prompt.text
    names = list(map(_name_of, problem.tools))
    missing = [name for name in names if not printed or name not in prompt.text]
    if missing:
        raise EvaluationError(
            f"{responder.model}: its chat template doesn't print the functions that problem {problem.id} "
            f"offers ({', '.join(missing)}), so no model could call them; leave the task out, or give "
            "the model a template that reads `tools`"
        )
    return prompt


def _name_of(tool: Mapping[str, Any]) -> str:
    return str((tool.get("function") or tool).get("name", ""))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
