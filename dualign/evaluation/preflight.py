"""Why a stage's answers can't be had or checked: asked before the first stage of a recipe starts."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dualign.errors import DualignError
from dualign.generation.preflight import issues as endpoint_issues
from dualign.judges.preflight import issues as judge_issues
from dualign.model_ref import StageRef
from dualign.rundir import RUN_JSON
from dualign.tasks.base import HarnessTask, Task
from dualign.tasks.table import load_questions, load_reference


def issues(stage: Any) -> list[tuple[str, str]]:
    """Return the reasons as (key, message), of a stage with `tasks` or with `score.tasks`."""
    if hasattr(stage, "score"):  # a sweep
        return [("score.tasks", message) for message in task_problems(stage.score)]
    reasons = endpoint_issues(stage) + judge_issues(stage)
    if getattr(stage, "checks_tasks", True):  # else a strong and a weak model are compared
        reasons += [("tasks", message) for message in task_problems(stage)]
    return reasons


def _useless(tasks: Iterable[Task], kind: str) -> Iterator[str]:
    """Yield which tasks of a harness don't give what a stage takes from them."""
    for task in tasks:
        if not isinstance(task, HarnessTask):
            continue
        if kind != "eval" and not task.has_accuracy:
            yield f"{task.rows}: {task.name} has no metric from 0 to 1; it serves in eval stages alone"
        elif kind == "pairs" and not task.writes:
            yield f"{task.rows}: {task.name} scores texts, and pairs are made of answers"


def task_problems(config: Any, key: str = "tasks") -> Iterator[str]:
    """Yield what is wrong with the task files under a key of a configuration that has `rows`."""
    for reference in getattr(config, key, ()):
        # What another stage makes isn't there yet, or is of its last run.
        if StageRef.parse(str(reference)) or (Path(reference).parent / RUN_JSON).is_file():
            continue
        try:
            tasks: Iterable[Task]
            if config.rows is None:
                tasks = [task for task, _ in load_questions([reference])]
            else:  # which rows are drawn isn't known here
                tasks = load_reference(reference)
                for task in tasks:
                    task.check.require()
            yield from _useless(tasks, getattr(config, "kind", ""))
        except DualignError as error:
            yield str(error)
