"""The call of an experiment, and of its plan. Light to import."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dualign.experiments.config import read_experiment
from dualign.recipe_file import find_recipe


def experiment(
    file: str | Path, *overrides: str, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Run a recipe with many settings and compare them, as `dualign experiment` does.

    Args:
        file: the YAML file of the experiment (docs/experiments.md).
        overrides: keys to set, as on the command line.
        say: gets a line when a run, a stage or a rung starts and ends.

    Returns:
        What experiment.json holds: `runs`, each with its settings, score, accuracies and intervals,
        and `best`, the index of the best.

    Raises:
        DualignError: the file is wrong, or every run failed.
    """
    from dualign.experiments.experiment import run_experiment
    from dualign.experiments.runs import plan_runs

    return run_experiment(plan_runs(read_experiment(find_recipe(file), overrides)), say=say)


def plan_experiment(file: str | Path, *overrides: str) -> None:
    """Print the runs of an experiment, what they share, and what they cost. Nothing is written."""
    from dualign.experiments.runs import plan_runs

    plan = plan_runs(read_experiment(find_recipe(file), overrides), remember=False)
    from dualign.experiments.show import show_plan

    show_plan(plan)
