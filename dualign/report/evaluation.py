"""Sections on the models' abilities: accuracy and its changes, format, lengths, samples."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dualign.data.conversation import MODES
from dualign.evaluation.scores import (
    ModelScores,
    Score,
    change_text,
    gain_text,
    mean_interval,
    percent,
    score_text,
    short_label,
    task_names,
)
from dualign.evaluation.table import PAIR_COLUMNS, PAIR_LEGEND, pair_rows
from dualign.intervals import wilson
from dualign.report.blocks import Block, Bullets, Gallery, Paragraph, Picture, Section, Table
from dualign.report.conclusions import (
    Step,
    format_finding,
    length_finding,
    margin_findings,
    multiplicity_note,
    step_finding,
    steps,
    think_tokens,
    thinking_finding,
    training_findings,
)
from dualign.report.plots import accuracy_plot, difficulty_plot, lengths_plot
from dualign.report.retention import retention_findings
from dualign.report.runs import ModelEvaluation, Row, StageRun
from dualign.report.samples import choose

_TASKS_PER_TABLE = 3  # more columns don't fit on paper
_SAMPLES_PER_TASK = 4
_RATES = (
    ("closed", "closed_rate"),
    ("leak", "leak_rate"),
    ("empty", "empty_think_rate"),
    ("cut", "cut_in_think_rate"),
)


def evaluation_sections(
    stages: Sequence[StageRun], models: Sequence[ModelEvaluation]
) -> Iterator[Section]:
    """Yield the sections for which the stages wrote figures."""
    scores = [model.scores for model in models]
    compared = steps(models, stages)
    findings = list(_findings(stages, scores, compared))
    if findings:
        yield Section(name="findings", title="In short", blocks=(Bullets(items=tuple(findings)),))
    if not scores:
        return
    yield _accuracy_section(scores)
    if compared:
        yield _steps_section(compared)
    yield from _pairs_sections(stages)
    yield Section(name="format", title="Format", blocks=tuple(_format_blocks(scores)))
    yield from _reasons_section(scores[-1])
    yield from _lengths_section(models)
    yield from _difficulty_section(models[-1])
    yield from _samples_section(stages, models[-1])


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


def _accuracy_section(models: Sequence[ModelScores]) -> Section:
    tasks = task_names(models)
    note = (
        "Percent right with 95 % intervals. Gain: think less no_think in the same model, in points "
        "of percent. In brackets where its 95 % interval holds 0: such a gain is not measurable."
    )
    parts = [tasks[i : i + _TASKS_PER_TABLE] for i in range(0, len(tasks), _TASKS_PER_TABLE)]
    pictures = [
        accuracy_plot(f"accuracy-{i}", task, [model for model in models if task in model.tasks])
        for i, task in enumerate(tasks)
    ]
    blocks: list[Block] = [Paragraph(text=note, quiet=True)]
    without_switch = ", ".join(short_label(m.model) for m in models if not m.mode_switch)
    if without_switch:
        text = (
            "Without a mode switch in its chat template, so that both modes got one prompt: "
            f"{without_switch}."
        )
        blocks.append(Paragraph(text=text))
    blocks += [_accuracy_table(models, part) for part in parts]
    blocks += [Gallery(pictures=tuple(pictures)), *(_gains_table(models, part) for part in parts)]
    return Section(name="accuracy", title="Accuracy in both modes", blocks=tuple(blocks))


def _pairs_sections(stages: Sequence[StageRun]) -> Iterator[Section]:
    for stage in stages:
        rows = list(pair_rows(stage.metrics)) if stage.metrics else []
        if rows:
            table = Table(columns=PAIR_COLUMNS, rows=tuple(map(tuple, rows)), text_columns=3)
            blocks = (Paragraph(text=PAIR_LEGEND, quiet=True), table)
            yield Section(name="pairs", title="Preference pairs", blocks=blocks)


def _gains_table(models: Sequence[ModelScores], tasks: Sequence[str]) -> Table:
    return Table(
        columns=("model", *tasks),
        rows=tuple(
            (short_label(model.model), *(change_text(model.gain(task)) for task in tasks))
            for model in models
        ),
        caption="Gain: think less no_think, with its 95 % interval",
    )


def _accuracy_table(models: Sequence[ModelScores], tasks: Sequence[str]) -> Table:
    rows = []
    for model in models:
        row = [short_label(model.model)]
        for task in tasks:
            row += [score_text(model.score(task, mode)) for mode in MODES] + [
                gain_text(model.gain(task))
            ]
        rows.append(tuple(row))
    counts = {task: _count(models, task) for task in tasks}
    return Table(
        columns=("model", *("think", "no_think", "gain") * len(tasks)),
        rows=tuple(rows),
        groups=(("", 1), *((f"{task} (n = {counts[task]})", 3) for task in tasks)),
    )


def _count(models: Sequence[ModelScores], task: str) -> str:
    counts = {
        score.n
        for model in models
        for mode in MODES
        if (score := model.score(task, mode)) is not None
    }
    return " to ".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else "-"


def _steps_section(compared: Sequence[Step]) -> Section:
    note = Paragraph(
        text=multiplicity_note(sum(len(step.changes()) for step in compared)), quiet=True
    )
    tables = tuple(_step_table(step) for step in compared)
    return Section(name="steps", title="What each stage bought", blocks=(note, *tables))


def _step_table(step: Step) -> Table:
    changes = step.changes()
    tasks = dict.fromkeys(task for task, _ in changes)
    rows = [
        (
            task,
            *(change_text(changes.get((task, mode))) for mode in MODES),
            change_text(step.thinking(task)),
        )
        for task in tasks
    ]
    if len(rows) > 1:
        means = (change_text(step.accuracy(mode)) for mode in MODES)
        rows.append(("all", *means, change_text(step.thinking(*tasks))))
    return Table(
        columns=("task", *MODES, "thinking tokens, %"), rows=tuple(rows), caption=step.title
    )


def _format_blocks(models: Sequence[ModelScores]) -> Iterator[Block]:
    yield Paragraph(
        text="Percent of answers. Closed: the think block was opened and closed. Leak: thinking in "
        "the answer in no_think mode. Empty: nothing thought in think mode. Cut: the token limit "
        "was reached while thinking.",
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
    yield Table(columns=(*columns, *tokens), rows=tuple(rows), text_columns=3)


def _format_cells(cell: Mapping[str, Any]) -> Iterator[str]:
    yield from (percent(cell.get(key)) for _, key in _RATES)
    for key in ("think_tokens", "answer_tokens"):
        counts = cell.get(key) or {}
        yield from ("-" if counts.get(p) is None else f"{counts[p]:.0f}" for p in ("p50", "p90"))


def _reasons_section(model: ModelScores) -> Iterator[Section]:
    """Yield why answers of the last model are wrong, in the verifiers' words."""
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


def _lengths_section(models: Sequence[ModelEvaluation]) -> Iterator[Section]:
    recent = models[-2:]
    pictures = []
    for i, task in enumerate(task_names([model.scores for model in recent])):
        lengths = {
            short_label(m.scores.model): list(think_tokens(m, task).values()) for m in recent
        }
        lengths = {model: values for model, values in lengths.items() if values}
        if lengths:
            pictures.append(lengths_plot(f"lengths-{i}", task, lengths))
    if pictures:
        note = Paragraph(
            text="Thinking tokens in think mode: means with 95 % intervals.", quiet=True
        )
        blocks = (note, _lengths_table(models), Gallery(pictures=tuple(pictures)))
        yield Section(name="lengths", title="How long the thinking is", blocks=blocks)


def _lengths_table(models: Sequence[ModelEvaluation]) -> Table:
    tasks = task_names([model.scores for model in models])
    rows = []
    for model in models:
        lengths = {task: list(think_tokens(model, task).values()) for task in tasks}
        every = [length for values in lengths.values() for length in values]
        cells = [_mean_text(values) for values in lengths.values()]
        total = [_mean_text(every)] if len(tasks) > 1 else []
        rows.append((short_label(model.scores.model), *cells, *total))
    return Table(columns=("model", *tasks, *(["all"] if len(tasks) > 1 else [])), rows=tuple(rows))


def _mean_text(values: Sequence[float]) -> str:
    mean = mean_interval(values)
    return f"{mean.value:.1f} [{mean.low:.1f}, {mean.high:.1f}]" if mean else "-"


def _difficulty_section(model: ModelEvaluation) -> Iterator[Section]:
    pictures: list[Picture] = []
    for i, task in enumerate(task_names((model.scores,))):
        by_mode: dict[str, dict[str, Score]] = {
            mode: _by_difficulty(model.samples, task, mode) for mode in MODES
        }
        if any(len(levels) > 1 for levels in by_mode.values()):
            pictures.append(difficulty_plot(f"difficulty-{i}", task, by_mode))
    if pictures:
        note = f"{short_label(model.scores.model)}, with 95 % intervals."
        blocks = (Paragraph(text=note, quiet=True), Gallery(pictures=tuple(pictures)))
        yield Section(name="difficulty", title="Accuracy by difficulty", blocks=blocks)


def _by_difficulty(samples: Sequence[Row], task: str, mode: str) -> dict[str, Score]:
    groups: dict[Any, list[bool]] = defaultdict(list)
    for row in samples:
        if (row.get("task"), row.get("mode")) == (task, mode) and row.get("difficulty") is not None:
            groups[row["difficulty"]].append(bool(row.get("correct")))
    numbers = all(isinstance(level, int | float) for level in groups)
    ordered = sorted(groups) if numbers else sorted(groups, key=str)
    return {str(level): _share(groups[level]) for level in ordered}


def _share(correct: Sequence[bool]) -> Score:
    share = sum(correct) / len(correct)
    low, high = wilson(share, len(correct))
    return Score(accuracy=share, low=low, high=high, n=len(correct))


def _samples_section(stages: Sequence[StageRun], model: ModelEvaluation) -> Iterator[Section]:
    seed = next(
        (int(s.record.get("seed") or 0) for s in reversed(stages) if s.metrics is not None), 0
    )
    blocks: list[Block] = []
    for task in task_names((model.scores,)):
        choice = choose(model.samples, task=task, count=_SAMPLES_PER_TASK, seed=seed)
        if choice is not None:
            counts = ", ".join(f"{outcome} {n}" for outcome, n in choice.outcomes.items())
            blocks += [
                Paragraph(text=f"{task}: of {sum(choice.outcomes.values())} problems, {counts}."),
                *choice.shown,
            ]
    if blocks:
        note = (
            f"Answers of {short_label(model.scores.model)}, the same problem in both modes. Chosen "
            f"by seed {seed}, by turns from each outcome, so that failures are seen; the counts "
            "say how common each outcome is."
        )
        yield Section(
            name="samples",
            title="Sample answers",
            blocks=(Paragraph(text=note, quiet=True), *blocks),
        )
