"""Exports beside the model that they were made from: what both are asked, and what is refused."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dualign.errors import CheckpointError
from dualign.evaluation.config import EvalConfig
from dualign.export.both_modes import (
    BothModes,
    Questions,
    Side,
    compare_modes,
    require_both_modes,
)
from dualign.export.compressed.types import ROWS
from dualign.export.questions import questions_for

if TYPE_CHECKING:
    from dualign.generation.responders import CheckpointResponder
    from dualign.models.loading import EvalModel


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonConfig:
    """What both models are asked afterwards."""

    tasks: tuple[str, ...] = ()
    """none: those of the model's run, else held-out rows"""
    rows: int = ROWS
    """problems of each task, or held-out rows of each mode"""
    seed: int = 0
    allow_worse: bool = False
    """write what is beyond the bounds, too"""


def plan_questions(
    model: "EvalModel", settings: ComparisonConfig, *, plain: bool = True
) -> tuple[Questions, EvalConfig]:
    """Return what both models will be asked, and the limits of answers; no weights are loaded.

    Call it before anything is written: what can't be asked ends an export here.

    Args:
        plain: ask a few plain questions where there are neither tasks nor held-out rows; otherwise
            there may be no questions.

    Raises:
        DualignError: a task can't be read, asked or checked here, or nothing is asked in a mode.
    """
    from dualign.evaluation.requests import build_requests

    questions, config = questions_for(
        model.model,
        model.tokenizer,
        settings.tasks,
        rows=settings.rows,
        seed=settings.seed,
        plain=plain,
    )
    if questions.tasks or questions.prompts:
        require_both_modes(questions)
    responder = _responder(model, config, "the model")
    build_requests(responder, questions.tasks, config, name=model.identity, seed=settings.seed)
    return questions, config


def compare_exports(
    model: "EvalModel",
    exports: "Iterable[tuple[str, EvalModel]]",
    questions: Questions,
    config: EvalConfig,
    settings: ComparisonConfig,
) -> dict[str, BothModes]:
    """Ask the model once, and each export, in both modes; return the comparisons by type.

    Args:
        exports: (type, model), opened one after the other.
        config: limits of answers.

    Raises:
        CheckpointError: a mode is worse beyond the bounds, and that isn't allowed.
    """
    reference = _side(model, config, "the model")
    with TemporaryDirectory() as folder:
        results = {
            type: compare_modes(
                reference,
                _side(export, config, f"its {type} copy"),
                questions,
                config,
                tokenizer=model.tokenizer,
                seed=settings.seed,
                answers=Path(folder) / "reference.jsonl",
            )
            for type, export in exports
        }
    faults = [f"{type}: {fault}" for type, result in results.items() for fault in result.faults()]
    if faults and not settings.allow_worse:
        raise CheckpointError(
            "an export is worse than a publishable one may be; nothing was written "
            "(--allow-worse writes all the same, and says so in export.json):\n  "
            + "\n  ".join(faults)
        )
    return results


def _side(subject: "EvalModel", config: EvalConfig, label: str) -> Side:
    from dualign.evaluation.divergence import scorer

    return Side(responder=_responder(subject, config, label), scores=scorer(subject.weights()))


def _responder(subject: "EvalModel", config: EvalConfig, label: str) -> "CheckpointResponder":
    from dualign.generation.responders import CheckpointResponder

    return CheckpointResponder(
        subject,
        backend="transformers",
        dtype="auto",
        batch_tokens=config.batch_tokens,
        label=label,
    )
