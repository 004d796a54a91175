"""Problems that are asked at a chosen length: sized by the tokenizer of one model.

The same text is asked of every model of a stage, so that their answers can be compared problem by
problem: the tokens are those of the last model, which is the result.
"""

import re
from collections.abc import Callable, Sequence

from transformers import AutoConfig

from dualign.checkpoints.context import positions_of
from dualign.data.conversation import MODES, Mode
from dualign.errors import EvaluationError
from dualign.evaluation.config import EvalStage, limit_of
from dualign.evaluation.requests import TaskSet, render_question, task_switch
from dualign.generation.answers import Responder
from dualign.generation.config import Endpoint, endpoint_of, model_label
from dualign.generation.responders import CheckpointResponder
from dualign.models.source import resolve_model
from dualign.switch import Switch
from dualign.tasks.base import Problem

# Of a guess: short words are one token in most vocabularies, long ones and figures are several.
_TEMPLATE_TOKENS = 32
_PIECES = re.compile(r"\d{1,2}|[^\W\d_]{1,7}|[^\w\s]|_")


def sized(responder: Responder, tasks: TaskSet, switch: Switch | None) -> TaskSet:
    """Return the tasks with all problems as long as they are to be, in tokens of a responder.

    Args:
        switch: the stage's; of the two modes' prompts, the longer one counts.

    Raises:
        EvaluationError: a problem can't have its length.
    """
    return [
        (task, _sized(responder, problems, task_switch(responder, task, switch)))
        if any(problem.sizing for problem in problems)
        else (task, problems)
        for task, problems in tasks
    ]


def _sized(
    responder: Responder, problems: Sequence[Problem], switch: Switch | None
) -> tuple[Problem, ...]:
    count = prompt_tokens(responder, switch)
    return tuple(problem.sizing.sized(count) if problem.sizing else problem for problem in problems)


def prompt_tokens(responder: Responder, switch: Switch | None) -> Callable[[str], int]:
    """Return what counts the tokens of a prompt with a text as the user's turn, in its longer mode;
    of an endpoint, whose tokenizer isn't here, a guess.
    """
    if not isinstance(responder, CheckpointResponder):
        return lambda text: _TEMPLATE_TOKENS + len(_PIECES.findall(text))
    tokenizer = responder.subject.tokenizer

    def tokens(text: str, mode: Mode) -> int:
        turn = {"role": "user", "content": text}
        problem = Problem(id="to be sized", messages=(turn,), expected=None, extra={})
        rendered = render_question(responder, problem, mode, switch).text
        return len(tokenizer(rendered, add_special_tokens=False)["input_ids"])

    longer = max(MODES, key=lambda mode: tokens("Hi", mode))
    return lambda text: tokens(text, longer)


def require_room(stage: EvalStage, tasks: TaskSet) -> None:
    """Refuse problems that go beyond a model's positions where its engine does.

    transformers and most servers answer there as well as they can; vLLM ends with an error of its own.

    Raises:
        EvaluationError: a prompt and its limit don't fit.
    """
    if stage.backend != "vllm":
        return
    sizes = {
        task.name: max(problem.sizing.tokens for problem in problems if problem.sizing)
        + max(limit_of(task, stage, mode) for mode in MODES)
        for task, problems in tasks
        if any(problem.sizing for problem in problems)
    }
    for model in stage.models if sizes else ():
        window, (name, tokens) = window_of(model), max(sizes.items(), key=lambda item: item[1])
        if window is not None and tokens > window:
            raise EvaluationError(
                f"task {name}: prompt and answer have up to {tokens:,} tokens, {model_label(model)} has "
                f"{window:,} positions, and vLLM asks nothing beyond; choose shorter lengths or limits, or "
                "backend: transformers, which shows how a model falls there"
            )


def window_of(model: str | Endpoint) -> int | None:
    """Return the positions that a checkpoint was made for, by its config; None where they aren't known."""
    if not isinstance(model, str) or endpoint_of(model) is not None:
        return None
    source = resolve_model(model)
    config = AutoConfig.from_pretrained(source.base, revision=source.revision).get_text_config()
    return positions_of(config.to_dict())
