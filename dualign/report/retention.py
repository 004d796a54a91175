"""What a stage retained of what its start could do: a sentence, a table by step, plots, answers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dualign.data.conversation import MODES, PLAIN_TEXT
from dualign.evaluation.scores import Change, change_text, percent
from dualign.report.blocks import Block, Gallery, Paragraph, Section, SideBySide, Table
from dualign.report.plots import retention_plot
from dualign.report.runs import Row, StageRun
from dualign.report.samples import mode_answer, plain, shortened

_WORDS = {"loss": "held-out loss", "kl": "KL to the start"}


def retention_findings(stage: StageRun) -> Iterator[str]:
    """Yield which step a stage published and why, and what is left there of what its start could do."""
    metrics = stage.record.get("metrics") or {}
    if "published_step" in metrics:
        best, stopped = metrics.get("best"), metrics.get("stopped")
        by = f", the best by {best['metric']} ({best['value']:.4g})" if best else ""
        why = f"; it stopped: {stopped}" if stopped else ""
        step, steps = metrics["published_step"], metrics["steps"]
        yield f"{stage.name}: published step {step} of {steps}{by}{why}."
    published = _published(stage)
    if published is None:
        return
    parts = [
        f"{task} {mode} {percent(cell['accuracy'])} %, {_change(cell)} points"
        for task, by_mode in published["tasks"].items()
        for mode, cell in by_mode.items()
    ]
    parts += [
        f"{words} {mode} {value:.3f}"
        for name, words in _WORDS.items()
        for mode, value in published.get(name, {}).items()
    ]
    if parts:
        yield f"{stage.name}: at step {published['step']}, against its start: {'; '.join(parts)}."


def retention_sections(stages: Sequence[StageRun]) -> Iterator[Section]:
    """Yield the measurements of each stage that has some, by step."""
    blocks = [block for stage in stages if _measurements(stage) for block in _blocks(stage)]
    if blocks:
        note = (
            "Percent right on small tasks while the stage trained; in points, the paired change from its "
            "start with its 95 % interval, in brackets where that holds 0. Loss and KL: nats a token."
        )
        title = "What the model could do before"
        blocks = [Paragraph(text=note, quiet=True), *blocks]
        yield Section(name="retention", title=title, blocks=tuple(blocks))


def _blocks(stage: StageRun) -> Iterator[Block]:
    measurements = _measurements(stage)
    tasks = [*measurements[0]["tasks"]]
    if tasks:
        pictures = [
            retention_plot(f"retention-{stage.name}-{number}", stage.name, stage.log, task)
            for number, task in enumerate(tasks, 1)
        ]
        yield Gallery(pictures=tuple(pictures))
    figures = {
        name: (*MODES, PLAIN_TEXT) if PLAIN_TEXT in measurements[0][name] else MODES
        for name in _WORDS
        if name in measurements[0]
    }
    parts = [*((task, MODES) for task in tasks), *((_WORDS[f], figures[f]) for f in figures)]
    yield Table(
        columns=("step", *(mode for _, modes in parts for mode in modes)),
        groups=(("", 1), *((name, len(modes)) for name, modes in parts)),
        rows=tuple(_row(entry, tasks, figures) for entry in measurements),
        caption=f"{stage.name}, by step",
    )
    broken = [(entry["step"], text) for entry in measurements for text in entry.get("broken", ())]
    for step, text in broken:
        yield Paragraph(text=f"{stage.name}, step {step}: beyond the bound: {text}.")
    yield from _shown_answers(stage)


def _row(entry: Row, tasks: Sequence[str], figures: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    cells = [str(entry["step"])]
    for task in tasks:
        for mode in MODES:
            cell = entry["tasks"][task][mode]
            since = f" {_change(cell)}" if entry["step"] else ""
            cells.append(f"{percent(cell['accuracy'])}{since}")
    for name, modes in figures.items():
        values = [entry[name].get(mode) for mode in modes]
        cells += ["-" if value is None else f"{value:.3f}" for value in values]
    return tuple(cells)


def _shown_answers(stage: StageRun) -> Iterator[SideBySide]:
    """Yield the answers to the fixed prompts, at the start and at the published step."""
    published = _published(stage)
    steps = dict.fromkeys([0, published["step"] if published else 0])
    rows = [row for row in stage.retained if row.get("task") == ""]
    for number in dict.fromkeys(row["id"] for row in rows):
        for step in steps:
            pair = {row["mode"]: row for row in rows if (row["id"], row["step"]) == (number, step)}
            if all(mode in pair for mode in MODES):
                yield SideBySide(
                    title=f"{stage.name}, step {step}",
                    problem=shortened(plain(pair["think"]["prompt"])),
                    expected="",
                    think=mode_answer(pair["think"]),
                    no_think=mode_answer(pair["no_think"]),
                )


def _measurements(stage: StageRun) -> list[dict[str, Any]]:
    retained = (stage.record.get("metrics") or {}).get("retain") or {}
    return [*retained.get("measurements", ())]


def _published(stage: StageRun) -> dict[str, Any] | None:
    """Return the measurement of the published step, else the last one; None without any but the start's."""
    later = [entry for entry in _measurements(stage) if entry["step"]]
    step = (stage.record.get("metrics") or {}).get("published_step")
    return next((entry for entry in later if entry["step"] == step), later[-1] if later else None)


def _change(cell: Mapping[str, Any]) -> str:
    return change_text(Change.of(cell["change"], cell["change_ci"]))
