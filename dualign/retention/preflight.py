"""Why a training stage can't run right on this machine, what it retains included.

Asked before the first stage of a recipe starts, and by `dualign plan`.
"""

from collections.abc import Iterator
from typing import Any

from dualign.evaluation.preflight import task_problems
from dualign.training import preflight
from dualign.training.precision import sharding_engine


def issues(stage: Any) -> list[tuple[str, str]]:
    """Return the reasons as (key, message)."""
    return [*preflight.issues(stage), *(_retention(stage) if stage.retain else ())]


def _retention(stage: Any) -> Iterator[tuple[str, str]]:
    for key in ("tasks", "watch"):
        for message in task_problems(stage.retain, key):
            yield f"retain.{key}", message
    if engine := sharding_engine(stage):
        yield (
            "retain",
            f"{engine} spreads the weights over processes, and one can't answer with its part: "
            "launch with MULTI_GPU, or evaluate afterwards",
        )
    if str(stage.train.get("optim", "")).startswith("schedule_free"):
        yield (
            "retain",
            f"{stage.train['optim']} changes its weights to be measured, and rounds them on the way back",
        )
