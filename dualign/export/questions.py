"""What both models are asked after an export, and with which limits.

Tasks that are named; else those that the model's run was asked; else held-out rows of its SFT stage,
and a few questions in a mode that has none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dualign.data.conversation import MODES, Mode
from dualign.evaluation.config import EvalConfig
from dualign.export.both_modes import Questions
from dualign.export.calibration import held_out_prompts
from dualign.export.check import QUESTIONS
from dualign.export.run_rows import evaluations
from dualign.switch import read_switch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LIMITS = ("max_new_tokens", "max_new_tokens_no_think", "batch_tokens")


def questions_for(
    model: str,
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Sequence[str],
    *,
    rows: int,
    seed: int = 0,
    plain: bool = True,
) -> tuple[Questions, EvalConfig]:
    """Return the questions, and the limits of answers as the run's evaluation has them.

    Args:
        plain: ask a few plain questions where there are neither tasks nor held-out rows.

    Raises:
        EvaluationError: a task can't be read, or its answers can't be checked here.
    """
    from dualign.tasks.table import load_questions

    asked: Mapping[str, Any] = next(evaluations(model), {})
    limits = {key: asked[key] for key in _LIMITS if asked.get(key)}
    config = EvalConfig(**limits, switch=read_switch(asked.get("switch"), "switch"))
    named = list(tasks) or list(asked.get("tasks") or ())
    if named:
        problems = load_questions(named, limit=rows, seed=seed)
        count = sum(len(of_task) for _, of_task in problems)
        names = ", ".join(task.name for task, _ in problems)
        origin = f"{count} problems of {names}"
        return Questions(tasks=problems, origin=origin), replace(config, tasks=tuple(named))
    prompts, origin = held_out_prompts(model, tokenizer, count=rows, seed=seed)
    if not (prompts or plain):
        return Questions(), config
    lacking = [mode for mode in MODES if mode not in dict(prompts)]
    parts = [f"{len(prompts)} {origin}"] if prompts else []
    if lacking:
        count = len(QUESTIONS)
        parts.append(f"{count} plain questions in {' and in '.join(lacking)} mode")
    asked_too = _plain(tokenizer, lacking)
    return Questions(prompts=(*prompts, *asked_too), origin=", and ".join(parts)), config


def _plain(
    tokenizer: "PreTrainedTokenizerBase", modes: Sequence[Mode]
) -> tuple[tuple[Mode, str], ...]:
    """Return a few questions in each mode."""
    from dualign.models.prompts import prompt, switch_of

    switch = switch_of(tokenizer)
    return tuple(
        (mode, prompt(tokenizer, [{"role": "user", "content": question}], mode, switch))
        for mode in modes
        for question in QUESTIONS
    )
