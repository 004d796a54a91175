"""`dualign experiment FILE --dry-run`: the runs, which stages they share, and what is still to do."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dualign import engine
from dualign.cost.plan import TrainingCost, plan_stage
from dualign.engine import StageStatus
from dualign.experiments.halving import RungValues, distinct_stages
from dualign.experiments.runs import Experiment, Run
from dualign.experiments.sharing import FinishedStages, finished_stages
from dualign.report.key_figures import duration
from dualign.terminal import wide_console


@dataclass(frozen=True, kw_only=True, slots=True)
class _Work:
    """A stage that is in one run or several, and is done once."""

    run: Run
    status: StageStatus
    number: int
    """of the first run that has it"""


def show_plan(experiment: Experiment, *, console: Console | None = None) -> None:
    """Print the table of runs, then what each stage costs. Nothing is trained or written.

    Raises:
        ConfigError: a run can't start on this machine.
    """
    console = console or wide_console()
    for run in experiment.runs:
        engine.require_runnable(run.recipe, [*run.statuses])
    finished = finished_stages(experiment)
    works = _works(experiment.runs)
    console.print(_run_table(experiment, works, finished))
    console.print(_cost_table(experiment, works, finished))
    for line in _lines(experiment, works, finished):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _works(runs: Sequence[Run]) -> dict[tuple[str, str], _Work]:
    works: dict[tuple[str, str], _Work] = {}
    for number, run in enumerate(runs, start=1):
        for status in run.statuses:
            key = status.entry.name, status.fingerprint
            works.setdefault(key, _Work(run=run, status=status, number=number))
    return works


def _run_table(
    experiment: Experiment, works: dict[tuple[str, str], _Work], finished: FinishedStages
) -> Table:
    """Return a row for each run: a stage is its own, done, or that of an earlier run."""
    table = Table(title=f"{experiment.name} -> {experiment.output_dir}", title_justify="left")
    stages = [entry.name for entry in experiment.runs[0].recipe.stages]
    for name in ("run", *experiment.config.vary, *stages):
        table.add_column(name, overflow="fold")
    for number, run in enumerate(experiment.runs, start=1):
        cells = [str(run.point.get(key, "-")) for key in experiment.config.vary]
        for status in run.statuses:
            work = works[status.entry.name, status.fingerprint]
            own = status.state if status.state != "changed" else "new"
            shared = own if work.number == number else f"of run {work.number}"
            cells.append("done" if finished.folder(status) else shared)
        table.add_row(str(number), *map(Text, cells))
    return table


def _cost_table(
    experiment: Experiment, works: dict[tuple[str, str], _Work], finished: FinishedStages
) -> Table:
    """Return a row for each stage: in how many runs it is, how often it is done, and for how long."""
    table = Table(box=None)
    for name in ("stage", "in runs", "different", "still to do", "training time", "peak memory"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for entry in experiment.runs[0].recipe.stages:
        same_name = [work for (name, _), work in works.items() if name == entry.name]
        todo = [work for work in same_name if not finished.folder(work.status)]
        costs = [cost for work in todo if (cost := _cost(work))]
        seconds = [cost.seconds for cost in costs if cost.seconds]
        peaks = [cost.memory.total for cost in costs if cost.memory]
        at_most = "at most " if any(cost.seconds_at_most for cost in costs) else ""
        table.add_row(
            entry.name,
            str(len(experiment.runs)),
            str(len(same_name)),
            str(len(todo)),
            f"{at_most}{duration(sum(seconds))}" if seconds else "-",
            f"{max(peaks) / 1e9:.2f} GB" if peaks else "-",
        )
    return table


def _cost(work: _Work) -> TrainingCost | None:
    return plan_stage(work.run.recipe, work.status, [*work.run.statuses]).cost


def _lines(
    experiment: Experiment, works: dict[tuple[str, str], _Work], finished: FinishedStages
) -> Iterator[str]:
    total = len(experiment.runs) * len(experiment.runs[0].statuses)
    done = sum(finished.folder(work.status) is not None for work in works.values())
    yield (
        f"{len(experiment.runs)} runs of {len(experiment.runs[0].statuses)} stages: {total} in all, "
        f"{len(works)} different, {done} of those done"
    )
    way = "lowest" if experiment.score.lower else "highest"
    yield f"score: {experiment.score.name}, the {way} is best"
    halving, metric = experiment.config.halving, experiment.metric
    if halving is None or metric is None:
        return
    settings = len({run.setting for run in experiment.runs})
    known = RungValues(experiment.output_dir, metric)
    for rung in halving.rungs:
        kept = halving.kept(settings)
        stages = distinct_stages(experiment.runs, halving.stage, metric)
        measured = sum(known.get(key, rung) is not None for key in stages)
        words = f" ({measured} measured)" if measured else ""
        yield (
            f"halving: at step {rung} of {halving.stage}, {kept} of {settings} settings go on by "
            f"{metric.name}{words}"
        )
        settings = kept
    last = experiment.runs[0].recipe.stage(halving.stage).config.train.get("max_steps", -1)
    if last > 0:
        count = len({run.setting for run in experiment.runs})
        yield f"halving takes {halving.steps(count, last)} of {count * last} steps of {halving.stage}"
