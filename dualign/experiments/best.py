"""The best run of an experiment as a plain recipe, which `dualign run` finds finished."""

from pathlib import Path

import yaml

from dualign import engine
from dualign.errors import ConfigError
from dualign.experiments.runs import Experiment, Run
from dualign.recipe import load_recipe, plain_recipe

_BEST_YAML = "best.yaml"


def write_best_recipe(experiment: Experiment, run: Run) -> Path:
    """Write the recipe of a run into the experiment's folder; returns its path.

    Raises:
        ConfigError: its stages aren't those of the run.
    """
    values = plain_recipe(run.recipe)
    values["name"] = f"{run.recipe.name}, {run.label}"
    values["output_dir"] = str(run.recipe.output_dir.resolve())
    path = experiment.output_dir / _BEST_YAML
    head = (
        f"# The best run of the experiment {experiment.name}: {run.label}.\n"
        f"# {experiment.recipe_file} with everything that the run sets. Its stages are finished:\n"
        "# `dualign run` skips them, and `dualign report` writes its report.\n"
    )
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    path.write_text(head + text, encoding="utf-8")
    fingerprints = [status.fingerprint for status in engine.statuses(load_recipe(path, ()))]
    if fingerprints != [status.fingerprint for status in run.statuses]:
        raise ConfigError(f"{path}: its stages aren't those of {run.recipe.output_dir}")
    return path
