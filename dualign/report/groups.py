"""Tasks in groups: of a suite, of a harness, of a probe, or of task files."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dualign.report.runs import StageRun

TaskGroups = Mapping[str, Sequence[str]]
"""title -> tasks; "" for the only group"""
FEW_TASKS = 6
"""up to here each task has columns, and plots of its own"""
_TITLES = {
    "lm_eval": "lm-evaluation-harness",
    "hub": "Published data sets",
    "bfcl": "Function calls",
    "long": "Long context",
    "words": "Word problems",
}
_FILES = "Task files"


def task_groups(stages: Sequence[StageRun], tasks: Sequence[str]) -> TaskGroups:
    """Return the tasks by the suite of their stage, else by what they were read from."""
    titles = dict(_titles(stages))
    groups: dict[str, list[str]] = {}
    for task in tasks:
        groups.setdefault(titles.get(task, _FILES), []).append(task)
    return groups if len(groups) > 1 else {"": tuple(tasks)}


def is_small(groups: TaskGroups) -> bool:
    """Return whether there are so few tasks that each has room for itself."""
    return sum(map(len, groups.values())) <= FEW_TASKS


def task_sources(stages: Sequence[StageRun]) -> dict[str, Mapping[str, Any]]:
    """Return for each evaluated task the entry of run.json's `data` that it was read from."""
    sources: dict[str, Mapping[str, Any]] = {}
    for stage in stages:
        # The record has the tasks' data first, in their order, then the files of pairs.
        tasks, data = (stage.metrics or {}).get("tasks", ()), stage.record.get("data") or ()
        for task, entry in zip(tasks, data, strict=False):
            sources[task] = entry
    return sources


def _titles(stages: Sequence[StageRun]) -> Iterator[tuple[str, str]]:
    for stage in stages:
        suite = (stage.record.get("config") or {}).get("suite")
        for task, entry in task_sources([stage]).items():
            prefix, colon, _ = str(entry.get("source")).partition(":")
            of_source = _TITLES.get(prefix, _FILES) if colon else _FILES
            yield task, f"Suite {suite}" if suite else of_source
