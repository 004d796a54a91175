"""`dualign plan` and `dualign inspect` in the terminal: tables of stages, rows and costs."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dualign.cost.plan import (
    StagePlan,
    TrainingCost,
    plan_stage,
    prepare_data,
    resolve_references,
)
from dualign.data.workers import Share
from dualign.engine import StageStatus, require_runnable, statuses
from dualign.errors import ConfigError
from dualign.notebook import html_table
from dualign.recipe import Recipe, StageEntry, references
from dualign.stages import stage_kind
from dualign.terminal import wide_console


class Plan(tuple[StagePlan, ...]):
    """The plans of all stages in order. A notebook shows them as a table."""

    def _repr_html_(self) -> str:
        columns = ("stage", "kind", "state", "starts from", "rows", "steps", "memory", "time")
        rows = [
            (
                stage.name,
                stage.kind,
                stage.state,
                ", ".join(stage.parents),
                *_short_cost(stage.cost),
            )
            for stage in self
        ]
        return html_table(columns, rows, text_columns=4)


def _short_cost(cost: TrainingCost | None) -> tuple[str, ...]:
    if cost is None:
        return ("", "", "", "")
    rows = "unknown" if cost.rows is None else f"{cost.rows:,}"
    memory = f"{cost.memory.total / 1e9:.2f} GB" if cost.memory else "unknown"
    return rows, f"{cost.steps:,}" if cost.steps else "unknown", memory, _training_time(cost)


def show_plan(recipe: Recipe, *, measure: bool = False, console: Console | None = None) -> None:
    """Print the stages, then rows, tokens, steps, memory and time of each training stage.

    Args:
        measure: train a few steps of each stage that isn't done, for its time.
    """
    console = console or wide_console()
    all_statuses = require_runnable(recipe, statuses(recipe, remember=False))
    console.print(_stage_table(recipe, all_statuses))
    for status in all_statuses:
        if measure and status.state != "done" and stage_kind(status.entry.kind).trains:
            console.print(f"{status.entry.name}: a few steps to measure ...", highlight=False)
        stage = plan_stage(recipe, status, all_statuses, measure=measure)
        if stage.cost or stage.details:
            console.rule(f"{stage.name} ({stage.kind})", align="left")
        if stage.cost:
            _show_training(stage, stage.cost, console)
        if stage.details:
            console.print(stage.details, highlight=False, soft_wrap=True)


def show_rows(recipe: Recipe, entry: StageEntry, *, count: int, html: Path | None = None) -> None:
    """Show `count` rows of each source and mode of a training stage, as the model gets them.

    They are printed, or written to `html` as a page.
    """
    from dualign.inspect.html import write_page
    from dualign.inspect.terminal import show

    config = _resolved(recipe, entry)
    data, tokenizer = prepare_data(config, entry.seed)
    if html is None:
        show(data, tokenizer, samples=count)
        return
    facts = (
        ("recipe", str(recipe.file)),
        ("stage", f"{entry.name} ({entry.kind})"),
        ("model", entry.config.model),
        ("template", config.template),
        ("max_tokens", f"{config.data.max_tokens:,}"),
        ("packing", config.data.packing),
    )
    title = f"Rows of {entry.name}, as the model gets them"
    write_page(html, data, tokenizer, title=title, facts=facts, samples=count)


def show_prepared(recipe: Recipe, entry: StageEntry, share: Share | None) -> None:
    """Prepare the rows of a training stage, or a share of them, and show the account.

    Raises:
        PartDoneError: the share is that of a worker, and is done. ConfigError: the rows are a stream.
    """
    from dualign.inspect.terminal import show_counts

    config = _resolved(recipe, entry)
    if config.data.stream is not None:
        raise ConfigError(
            f"{recipe.file}: stage {entry.name}: data.streaming prepares rows while training runs; "
            "remove it to prepare them before"
        )
    data, _ = prepare_data(config, entry.seed, share)
    show_counts(data.rows, wide_console())


def _resolved(recipe: Recipe, entry: StageEntry) -> Any:
    """Return the configuration of a stage whose parents have run."""
    config, missing = resolve_references(entry, statuses(recipe, remember=False))
    if missing:
        raise ConfigError(
            f"{recipe.file}: stage {entry.name} reads from {', '.join(missing)}, which hasn't run yet"
        )
    return config


def _stage_table(recipe: Recipe, all_statuses: list[StageStatus]) -> Table:
    table = Table(title=f"{recipe.name} -> {recipe.output_dir}", title_justify="left")
    for name in ("stage", "kind", "state", "starts from"):
        table.add_column(name, overflow="fold")
    for status in all_statuses:
        parents = dict.fromkeys(ref.name for ref in references(status.entry.config).values())
        start = ", ".join(parents)
        table.add_row(status.entry.name, status.entry.kind, status.state, start or "-")
    return table


def _show_training(stage: StagePlan, cost: TrainingCost, console: Console) -> None:
    from dualign.inspect.terminal import show_counts

    if stage.rows:
        show_counts(stage.rows, console)
    else:
        names = ", ".join(stage.waits_for)
        event = f"stage {names} has run" if names else "its data is downloaded"
        console.print(f"rows and tokens: known when {event}")
    console.print(_cost_table(cost))
    if cost.memory:
        lines = "\n  ".join(cost.memory.lines())
        console.print(f"memory of one process:\n  {lines}", highlight=False, soft_wrap=True)
    for note in cost.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)


def _cost_table(cost: TrainingCost) -> Table:
    table = Table(show_header=False, box=None)
    table.add_column(justify="right")
    table.add_column()
    unknown = "unknown"
    for name, value in (
        ("training rows", f"{cost.rows:,}" if cost.rows is not None else unknown),
        ("tokens in an epoch", f"{cost.tokens:,}" if cost.tokens is not None else unknown),
        ("steps", f"{cost.steps:,}" if cost.steps else unknown),
        ("rows in a step", f"{cost.rows_per_step:,}"),
        ("tokens in a step", f"about {cost.tokens_per_step:,}"),
        (
            "peak memory",
            f"{cost.memory.total / 1e9:.2f} GB per process" if cost.memory else unknown,
        ),
        ("training time", _training_time(cost)),
    ):
        table.add_row(name, value)
    return table


def _training_time(cost: TrainingCost) -> str:
    if not cost.seconds:
        return "unknown"
    return ("at most " if cost.seconds_at_most else "") + _duration(cost.seconds)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 7200 else f"about {seconds / 3600:.1f} h"
