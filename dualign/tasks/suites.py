"""Suites of benchmarks, by one word: which tasks, how they are asked, and what a model card says.

suites.yaml lists them. A suite becomes tasks and settings of a stage when its recipe is read, so that
what is hashed, planned and run is the same as if they had been written out.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dualign.config import nearest, read_yaml


@cache
def _suites() -> Mapping[str, Any]:
    suites: Mapping[str, Any] = read_yaml(Path(__file__).with_suffix(".yaml")).value
    return suites


def suite_names() -> Iterator[tuple[str, str]]:
    """Yield each suite with what it is about."""
    yield from ((name, str(suite["about"])) for name, suite in _suites().items())


def suite_problem(name: str) -> str:
    """Return why there is no suite of that name; "" if there is one."""
    names = list(_suites())
    if name in names:
        return ""
    return f"no suite {name!r}{nearest(name, names)}; expected one of {', '.join(names)}"


def with_suite(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a stage with the tasks and settings of its suite; its own settings go first,
    and its `hub:aime25@FILE` goes before the suite's `hub:aime25`.
    """
    suite = _suites().get(str(keys.get("suite")))
    if suite is None or not isinstance(keys.get("tasks") or (), list | tuple):
        return dict(keys)
    references = [task for benchmark in suite["benchmarks"] for task in benchmark.get("tasks", ())]
    tasks = [str(task) for task in keys.get("tasks") or ()]
    placed = {head: task for task in tasks if (head := task.partition("@")[0]) in references}
    own = [task for task in tasks if task not in references and task not in placed.values()]
    references = [placed.get(task, task) for task in references]
    settings = dict(suite["settings"])
    if keys.get("temperature") == 0:
        settings.pop("top_p", None)  # greedy by the stage's own choice
    return {**settings, **keys, "tasks": [*references, *own]}


def fill_suites(stages: Any) -> None:
    """Put the tasks and settings of suites into a recipe's stages; what is set there, or overridden, stays."""
    for stage in stages if isinstance(stages, list) else ():
        if not isinstance(stage, dict) or stage.get("kind") != "eval":
            continue
        if isinstance(stage.get("suite"), str):
            stage.update(with_suite(stage))


def suite_record(
    name: str, tasks: Mapping[str, Sequence[str]], left_out: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """Return a suite for metrics.json: its benchmarks, those that aren't asked, the published figures.

    Args:
        tasks: the names of the tasks of each reference, without the file that it may name.
        left_out: rows of each task that aren't asked, by reason.
    """
    suite = _suites()[name]
    benchmarks = []
    for benchmark in suite["benchmarks"]:
        names = [task for reference in benchmark.get("tasks", ()) for task in tasks[reference]]
        rows = {task: dict(left_out[task]) for task in names if left_out.get(task)}
        benchmarks.append(
            {
                **{key: value for key, value in benchmark.items() if key != "tasks"},
                "tasks": names,
                **({"left_out": rows} if rows else {}),
            }
        )
    named = {key: suite[key] for key in ("model", "source") if key in suite}
    return {"name": name, **named, "benchmarks": benchmarks}


def suite_notes(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence on each benchmark that isn't asked, or not as it was published."""
    for benchmark in record["benchmarks"]:
        if "skipped" in benchmark:
            yield f"{benchmark['name']} isn't asked: {benchmark['skipped']}."
        if "note" in benchmark:
            yield f"{benchmark['name']}: {benchmark['note']}."
        for task, reasons in benchmark.get("left_out", {}).items():
            counts = ", ".join(f"{reason} ({number:,})" for reason, number in reasons.items())
            yield f"{task} leaves out rows: {counts}."
    if "source" in record:
        yield f"Published: {record['model']}, {record['source']}."
