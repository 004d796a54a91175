"""An experiment: every run of the grid, or with halving the better part of them, then the comparison.

    dualign experiment beta.yaml

The state is in the files: a finished stage is linked into every run that has it, a paused or
interrupted one goes on from its checkpoint, and a rung that was decided stays so.
"""

import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dualign import engine
from dualign.errors import ConfigError, DualignError, OutOfMemoryError, TrainingError
from dualign.experiments.best import write_best_recipe
from dualign.experiments.halving import RungValues, better_settings, distinct_stages
from dualign.experiments.measures import measured
from dualign.experiments.record import Record, experiment_record
from dualign.experiments.rungs import rung_value
from dualign.experiments.runs import Experiment, Run
from dualign.experiments.sharing import FinishedStages, finished_stages
from dualign.recipe import Recipe, load_recipe
from dualign.rundir import locked, write_json

Say = Callable[[str], None]
_EXPERIMENT_JSON = "experiment.json"


@dataclass(kw_only=True, slots=True)
class _Course:
    """How far an experiment is."""

    experiment: Experiment
    say: Say
    finished: FinishedStages
    rungs: RungValues
    failures: dict[str, str] = field(default_factory=dict)
    """run -> why it failed"""
    stopped: dict[str, int] = field(default_factory=dict)
    """run -> the rung after which it didn't go on"""


def run_experiment(experiment: Experiment, *, say: Say = print) -> Record:
    """Run what isn't finished; write experiment.json, table.md, report.html and best.yaml.

    A run that fails, as by a loss that isn't finite, is reported and the others go on.

    Raises:
        ConfigError: a run can't start on this machine; nothing was started.
        DualignError: every run failed, or two failed with the same message.
    """
    if "RANK" in os.environ:
        raise ConfigError(
            f"{experiment.file}: an experiment starts its stages itself: call `dualign experiment` "
            "without a launcher, and give the stages `launch: FILE`"
        )
    for run in experiment.runs:
        engine.require_runnable(run.recipe, [*run.statuses])
    with locked(experiment.output_dir):
        course = _Course(
            experiment=experiment,
            say=say,
            finished=finished_stages(experiment),
            rungs=RungValues(experiment.output_dir, experiment.metric),
        )
        alive = _halve(course)
        for number, run in enumerate(alive, start=1):
            _finish(course, run, f"run {number}/{len(alive)}: {run.label}")
        record = experiment_record(experiment, course.failures, course.stopped, course.rungs)
        _write(experiment, record, say)
    return record


def _halve(course: _Course) -> list[Run]:
    """Return the runs that go on to their end."""
    experiment = course.experiment
    halving, metric = experiment.config.halving, experiment.metric
    alive = [*experiment.runs]
    if halving is None or metric is None:
        return alive
    for rung in halving.rungs:
        values: dict[str, list[float]] = {run.setting: [] for run in alive}
        for key, run in distinct_stages(alive, halving.stage, metric).items():
            value = _value_at(course, run, key, rung)
            if value is not None:
                values[run.setting].append(value)
        better = better_settings(values, metric, halving.kept(len(values)))
        for run in alive:
            if run.setting not in better and run.name not in course.failures:
                course.stopped[run.name] = rung
        going = [run for run in alive if run.setting in better]
        course.say(
            f"rung {rung}: {len(better)} of {len(values)} settings go on by {metric.name}: "
            + "; ".join(dict.fromkeys(run.label for run in going))
        )
        alive = going
    return alive


def _value_at(course: _Course, run: Run, key: str, rung: int) -> float | None:
    """Return the metric of a run at a rung: known, or measured by running to it; None: it failed."""
    value = course.rungs.get(key, rung)
    if value is not None:
        return value
    halving, metric = course.experiment.config.halving, course.experiment.metric
    assert halving is not None and metric is not None
    recipe = run.recipe
    steps = recipe.stage(halving.stage).config.train.get("max_steps", -1)
    if not 0 < steps < rung:  # else the run is at its end before the rung
        overrides = (*recipe.overrides, f"{halving.stage}.pause_at_step={rung}")
        recipe = load_recipe(recipe.file, overrides)
    if not _run(course, run, recipe, f"to step {rung}: {run.label}"):
        return None
    value = rung_value(run, halving.stage, metric, rung)
    course.rungs.add(key, rung, value)
    course.say(f"{run.label}: {metric.name} {value:.4g} at step {rung}")
    return value


def _finish(course: _Course, run: Run, label: str) -> None:
    if not _run(course, run, run.recipe, label):
        return
    score = course.experiment.score
    status = run.status(score.stage)
    value = measured(score, status.entry, status.run_dir)
    course.say(f"{run.label}: {score.name} {value:.4g}")


def _run(course: _Course, run: Run, recipe: Recipe, label: str) -> bool:
    """Run a recipe with all that others have finished; returns whether it didn't fail."""
    if run.name in course.failures:
        return False
    course.say(f"== {label}")
    course.finished.add(status.run_dir for status in run.statuses)
    for stage, source in course.finished.link(run.statuses).items():
        course.say(f"{stage}: shared with {source.parent}")
    course.finished.give_answers(run.statuses)
    digests = course.experiment.output_dir / ".digests.json"
    if digests.is_file():
        recipe.output_dir.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(digests, recipe.output_dir / digests.name)
    try:
        engine.run(recipe, say=_quiet(course.say))
    except DualignError as error:
        _note_failure(course, run, error)
        return False
    finally:
        course.finished.add(status.run_dir for status in run.statuses)
        _free_memory()
    return True


def _quiet(say: Say) -> Say:
    """Leave out that a stage was done before: of each run, that is most stages."""
    return lambda line: None if line.endswith("skipped") else say(line)


def _note_failure(course: _Course, run: Run, error: DualignError) -> None:
    """Keep why a run failed; raise if a second one fails alike, or none is left.

    A loss that isn't finite, or a lack of memory, is a result of the settings, and may well come with
    the same message.
    """
    message = str(error)
    of_settings = isinstance(error, TrainingError | OutOfMemoryError)
    if not of_settings and message in course.failures.values():
        raise error
    course.failures[run.name] = message
    if len(course.failures) == len(course.experiment.runs):
        raise error
    course.say(f"failed: {run.label}: {message}")


def _free_memory() -> None:
    """Free what a run leaves: a trainer and its model form reference cycles."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _write(experiment: Experiment, record: Record, say: Say) -> None:
    from dualign.report.experiment import experiment_markdown, terminal_table, write_page
    from dualign.terminal import wide_console

    out = experiment.output_dir
    write_json(out / _EXPERIMENT_JSON, record)
    (out / "table.md").write_text(experiment_markdown(record), encoding="utf-8")
    write_page(out, record)
    console = wide_console()
    console.print(terminal_table(record))
    for sentence in record["says"]:
        console.print(sentence, highlight=False, soft_wrap=True, markup=False)
    for line in _best_lines(experiment, record):
        say(line)
    say(f"report: {out / 'report.html'}")


def _best_lines(experiment: Experiment, record: Record) -> Iterator[str]:
    if record["best"] is not None:
        run = experiment.runs[record["best"]]
        path = write_best_recipe(experiment, run)
        yield f"the best recipe: {path}; `dualign run {path}` finds it finished"
