"""What measuring costs, and the least fall that it can tell from luck: a line for the plan."""

from collections.abc import Iterator
from typing import Any

from dualign.data.conversation import MODES
from dualign.errors import DualignError
from dualign.evaluation.scores import paired_change
from dualign.tasks.table import load_problems, load_reference


def retention_notes(stage: Any, steps: int | None) -> Iterator[str]:
    """Yield what the `retain` of a training stage asks, at most; nothing without one.

    Args:
        steps: of the stage; None: not known yet.
    """
    retain = stage.retain
    if retain is None:
        return
    counts = [_problems(path, retain.rows) for path in (*retain.tasks, *retain.watch)]
    answers = len(MODES) * (sum(counts) + len(retain.prompts))
    times = "at the start and the end"
    if retain.every:
        every = f"every {retain.every} steps"
        times = f"{2 + (steps - 1) // retain.every} times" if steps else f"{every} and {times}"
    rows = f", and {len(retain.held_out)} files of held-out rows" if retain.held_out else ""
    yield (
        f"retain: asks for {answers:,} answers of {retain.max_new_tokens:,} tokens at most, where a task "
        f"has no limit of its own{rows}, {times}"
    )
    if counts:
        yield f"retain: {min(counts)} problems tell a fall of {least_fall(min(counts)):.0%} from luck, and no smaller one"


def _problems(path: str, rows: int) -> int:
    """Return how many problems of a task are asked: `rows` where its file isn't there yet."""
    try:
        return sum(len(load_problems(task, limit=rows)) for task in load_reference(path))
    except DualignError:
        return rows


def least_fall(n: int) -> float:
    """Return the least fall of an accuracy on `n` problems, none of them won, whose interval excludes 0."""
    for lost in range(1, n + 1):
        if paired_change([True] * n, [False] * lost + [True] * (n - lost)).measurable:
            return lost / n
    return 1.0
