"""Sections on the models' abilities: the list of them, findings, format, reasons, preference pairs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dualign.data.conversation import MODES
from dualign.evaluation.scores import ModelScores, percent, short_label, task_names
from dualign.evaluation.table import PAIR_COLUMNS, PAIR_LEGEND, pair_rows
from dualign.report.accuracy import (
    accuracy_sections,
    base_sections,
    sampled_sections,
    step_sections,
)
from dualign.report.blocks import Bullets, Paragraph, Section, Table
from dualign.report.budgets import budget_sections
from dualign.report.conclusions import (
    Evaluated,
    Step,
    format_finding,
    length_finding,
    margin_findings,
    step_finding,
    steps,
    thinking_finding,
    training_findings,
)
from dualign.report.groups import is_small, task_groups
from dualign.report.harness import harness_sections
from dualign.report.languages import language_sections
from dualign.report.long_context import long_context_sections
from dualign.report.retention import retention_findings
from dualign.report.runs import ModelEvaluation, StageRun
from dualign.report.samples import sample_sections
from dualign.report.suites import suite_sections
from dualign.report.thinking import difficulty_sections, thinking_sections

_RATES = (
    ("closed", "closed_rate"),
    ("leak", "leak_rate"),
    ("empty", "empty_think_rate"),
    ("cut", "cut_in_think_rate"),
    ("limit", "unfinished_rate"),
)


def evaluation_sections(
    stages: Sequence[StageRun], models: Sequence[ModelEvaluation]
) -> Iterator[Section]:
    """Yield the sections for which the stages wrote figures, in the order of `_SECTIONS`."""
    evaluated = Evaluated(stages=stages, models=models, steps=steps(models, stages))
    yield from _finding_sections(evaluated)
    if models:
        for sections in _SECTIONS:
            yield from sections(evaluated)


def _finding_sections(evaluated: Evaluated) -> Iterator[Section]:
    findings = tuple(_findings(evaluated.stages, evaluated.scores, evaluated.steps))
    if findings:
        yield Section(name="findings", title="In short", blocks=(Bullets(items=findings),))


def _findings(
    stages: Sequence[StageRun], models: Sequence[ModelScores], compared: Sequence[Step]
) -> Iterator[str]:
    if models:
        yield from filter(None, (thinking_finding(models[-1]), format_finding(models[-1])))
    by_stage = {short_label(step.after.scores.model): step for step in compared}
    for stage in stages:
        of_training = list(training_findings(stage))
        if stage.name in by_stage:
            yield from _step_findings(by_stage.pop(stage.name))
        elif of_training and models:
            yield f"{stage.name}: not evaluated, so what it bought in accuracy isn't known."
        yield from of_training
        yield from retention_findings(stage)
    yield from (text for stage in stages for text in margin_findings(stage.metrics or {}))
    for step in compared:
        if short_label(step.after.scores.model) in by_stage:
            yield from _step_findings(step)


def _step_findings(step: Step) -> Iterator[str]:
    yield step_finding(step)
    yield from filter(None, (length_finding(step),))


def _pair_sections(evaluated: Evaluated) -> Iterator[Section]:
    for stage in evaluated.stages:
        rows = list(pair_rows(stage.metrics)) if stage.metrics else []
        if rows:
            table = Table(columns=PAIR_COLUMNS, rows=tuple(map(tuple, rows)), text_columns=3)
            blocks = (Paragraph(text=PAIR_LEGEND, quiet=True), table)
            yield Section(name="pairs", title="Preference pairs", blocks=blocks)


def _format_sections(evaluated: Evaluated) -> Iterator[Section]:
    """Yield the rates of faults of form, and lengths; of many tasks, those of the last model."""
    models = evaluated.scores
    if not is_small(task_groups(evaluated.stages, task_names(models))):
        models = models[-1:]
    note = Paragraph(
        text="Percent of answers. Closed: the think block was opened and closed. Leak: thinking in "
        "the answer in no_think mode. Empty: nothing thought in think mode. Cut: the token limit "
        "was reached while thinking. Limit: it was reached at all.",
        quiet=True,
    )
    columns = ("task", "model", "mode", *(name for name, _ in _RATES))
    tokens = ("think p50", "think p90", "answer p50", "answer p90")
    rows = [
        (task, short_label(model.model), mode, *_format_cells(model.tasks[task][mode]))
        for task in task_names(models)
        for model in models
        for mode in MODES
        if mode in model.tasks.get(task, {})
    ]
    table = Table(columns=(*columns, *tokens), rows=tuple(rows), text_columns=3)
    yield Section(name="format", title="Format", blocks=(note, table))


def _format_cells(cell: Mapping[str, Any]) -> Iterator[str]:
    yield from (percent(cell.get(key)) for _, key in _RATES)
    for key in ("think_tokens", "answer_tokens"):
        counts = cell.get(key) or {}
        yield from ("-" if counts.get(p) is None else f"{counts[p]:.0f}" for p in ("p50", "p90"))


def _reason_sections(evaluated: Evaluated) -> Iterator[Section]:
    """Yield why answers of the last model are wrong, in the verifiers' words."""
    model = evaluated.scores[-1]
    rows = [
        (task, mode, reason, str(count))
        for task, by_mode in model.tasks.items()
        for mode in MODES
        for reason, count in (by_mode.get(mode, {}).get("reasons") or {}).items()
    ]
    if rows:
        table = Table(
            columns=("task", "mode", "reason", "answers"), rows=tuple(rows), text_columns=3
        )
        note = Paragraph(text=f"{short_label(model.model)}, counted by its verifiers.", quiet=True)
        yield Section(name="reasons", title="Why answers are wrong", blocks=(note, table))


_SECTIONS: tuple[Callable[[Evaluated], Iterator[Section]], ...] = (
    suite_sections,
    accuracy_sections,
    sampled_sections,
    step_sections,
    base_sections,
    harness_sections,
    language_sections,
    long_context_sections,
    _pair_sections,
    _format_sections,
    _reason_sections,
    thinking_sections,
    budget_sections,
    difficulty_sections,
    sample_sections,
)
"""The sections on evaluated models, a row for each; one without figures yields nothing."""
