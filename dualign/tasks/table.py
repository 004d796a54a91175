"""Where tasks come from: a file, or a source that a reference names before its colon."""

import random
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from dualign.errors import DataError, EvaluationError
from dualign.model_ref import StageRef
from dualign.tasks.base import Problem, Task, expected_of
from dualign.tasks.files import read_task

_SOURCES: Mapping[str, str] = {
    "bfcl": "dualign.tasks.bfcl",
    "words": "dualign.tasks.word_problems",
}
"""The module of each source, as `lm_eval` in `lm_eval:gsm8k`; its `load(name)` returns the tasks."""


def source_of(reference: str | Path) -> str | None:
    """Return the source that a reference names; None for a file."""
    prefix, colon, _ = str(reference).partition(":")
    return prefix if colon and prefix in _SOURCES else None


def load_reference(reference: str | Path) -> tuple[Task, ...]:
    """Return the tasks that a reference names: one for a file, some for a group of a source.

    Raises:
        EvaluationError: no such file or task, or its source isn't installed.
        ConfigError: with every problem of a file.
    """
    source = source_of(reference)
    if source is None:
        return (read_task(reference),)
    tasks: tuple[Task, ...] = import_module(_SOURCES[source]).load(str(reference).partition(":")[2])
    return tasks


def load_tasks(references: Sequence[str | Path]) -> tuple[Task, ...]:
    """Load the tasks of several references.

    Raises:
        EvaluationError: two of them have the same name.
    """
    tasks: list[Task] = []
    origins: dict[str, str | Path] = {}
    for reference in references:
        for task in load_reference(reference):
            if task.name in origins:
                raise EvaluationError(
                    f"{origins[task.name]} and {reference} are both named {task.name!r}; give each task "
                    "its own name"
                )
            origins[task.name] = reference
            tasks.append(task)
    return tuple(tasks)


def unknown_tasks(references: Sequence[str | Path]) -> str:
    """Return why the tasks can't be read yet, in words: a stage that hasn't run writes one; "" if they can."""
    refs = [ref for path in references if (ref := StageRef.parse(str(path)))]
    names = ", ".join(dict.fromkeys(ref.name for ref in refs))
    return f"known when stage {names} has run" if refs else ""


def load_problems(task: Task, *, limit: int | None = None, seed: int = 0) -> tuple[Problem, ...]:
    """Return the task's problems in order; with `limit`, a seeded sample of them.

    Raises:
        EvaluationError: they can't be had, or one can't be read.
    """
    problems = task.load_problems()
    if limit is None or limit >= len(problems):
        return problems
    drawn = random.Random(f"{seed}:{task.name}").sample(range(len(problems)), limit)
    return tuple(problems[i] for i in sorted(drawn))


def load_questions(
    references: Sequence[str | Path],
    *,
    limit: int | None = None,
    seed: int = 0,
    checked: bool = True,
) -> list[tuple[Task, tuple[Problem, ...]]]:
    """Load tasks and their problems; if answers will be checked, refuse what can't be before it is asked.

    Raises:
        EvaluationError: as from `load_tasks` and `load_problems`; a verifier that can't work here;
            a row whose expected answer its verifier can't read.
    """
    questions = []
    for task in load_tasks(references):
        problems = load_problems(task, limit=limit, seed=seed)
        questions.append((task, problems))
        if not checked:
            continue
        try:
            task.check.require()
        except DataError as error:
            raise EvaluationError(f"task {task.name}: {error}") from None
        for problem in problems:
            expected_of(task, problem)
    return questions
