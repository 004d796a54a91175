"""The metric of a paused run: of its held-out rows, or of the tasks of an eval stage."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dualign.engine import StageStatus
from dualign.errors import EvaluationError
from dualign.experiments.measures import Measure, beta_of, evaluation_value, training_value
from dualign.experiments.runs import Run
from dualign.recipe import references, replace_texts
from dualign.rundir import paused_model, read_paused, read_run, work_folder


def rung_value(run: Run, stage: str, measure: Measure, rung: int) -> float:
    """Return the metric of a run whose stage is paused at a rung, or finished.

    Raises:
        EvaluationError: it wasn't measured, or the eval stage has no such metric.
    """
    status = run.status(stage)
    if measure.stage != stage:
        return _task_value(run, status, measure, rung)
    paused = read_paused(status.run_dir)
    metrics = paused.metrics if paused else _logged(status.run_dir, rung)
    value = training_value(metrics, measure.key, beta=beta_of(status.entry.config))
    if value is None:
        known = ", ".join(sorted(metrics)) or "nothing"
        raise EvaluationError(f"{run.label}: no {measure.name} at step {rung}; there: {known}")
    return value


def _logged(run_dir: Path, step: int) -> Mapping[str, Any]:
    """Return the held-out metrics of a finished stage at a step, else the last before it."""
    from dualign.report.runs import read_stage

    rows = [row for row in read_stage(run_dir).log if "eval_loss" in row and row["step"] <= step]
    return rows[-1] if rows else read_run(run_dir)["metrics"].get("validation") or {}


def _task_value(run: Run, status: StageStatus, measure: Measure, rung: int) -> float:
    """Ask the paused model the tasks of the eval stage; of a finished stage, its model."""
    from dualign.evaluation.evaluate import run as evaluate

    paused = read_paused(status.run_dir)
    model = status.run_dir
    if paused is not None:
        model = paused_model(work_folder(status.run_dir), paused.step)
    entry = run.status(measure.stage).entry
    config = replace(entry.config, models=(str(model.resolve()),), pairs=())
    paths = {
        text: str(run.status(ref.name).run_dir.resolve() / ref.path)
        for text, ref in references(config).items()
    }
    work = run.recipe.output_dir / f".{measure.stage}-at-{rung}"
    outcome = evaluate(replace_texts(config, paths), work, seed=entry.seed)
    return evaluation_value(outcome.metrics, measure.key, where=str(work))
