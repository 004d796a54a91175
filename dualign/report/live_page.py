"""The page of a run that goes on, was paused, or failed: its stages, and the unfinished one's figures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from dualign.progress import Progress
from dualign.report.blocks import (
    Block,
    Bullets,
    Details,
    Paragraph,
    ProgressBar,
    Refresh,
    Report,
    Section,
    Table,
)
from dualign.report.evaluation import evaluation_sections
from dualign.report.key_figures import duration, key_figure, last_figures
from dualign.report.retention import retention_sections
from dualign.report.runs import Row, StageRun, evaluations_of, is_training, latest_rows
from dualign.report.samples import shortened
from dualign.report.stages import training_sections
from dualign.report.sweep import sweep_sections

_WRITTEN = ("samples.jsonl", "generations.jsonl")  # answers of a stage that asks models
_SHOWN_ANSWERS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveStage:
    """A stage of a recipe. `run` is there of a finished one, and of the unfinished one."""

    name: str
    kind: str
    state: str
    """done, to do, running, failed, interrupted, paused at step N, unfinished"""
    run: StageRun | None = None
    progress: Progress | None = None
    """of the unfinished one, if it says how far it is"""

    @property
    def is_current(self) -> bool:
        return self.state not in ("done", "to do")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a run ended before it was done."""

    state: Literal["failed", "interrupted"]
    text: str
    """the error, or what resumes the run"""

    @property
    def title(self) -> str:
        return "Interrupted" if self.state == "interrupted" else "What went wrong"


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveRun:
    """All that the page shows."""

    title: str
    stages: tuple[LiveStage, ...]
    since: datetime
    """when the current stage was started"""
    now: datetime
    ending: Ending | None = None
    refresh_seconds: int = 0
    """0: the run has ended"""

    @property
    def current(self) -> LiveStage | None:
        return next((stage for stage in self.stages if stage.is_current), None)

    @property
    def finished(self) -> tuple[StageRun, ...]:
        """The run directories that are there."""
        return tuple(s.run for s in self.stages if s.run is not None and not s.is_current)


def live_page(run: LiveRun, finished: Sequence[Section]) -> Report:
    """Return the page. `finished` are the sections of the finished stages."""
    current = run.current
    refresh = Refresh(seconds=run.refresh_seconds, written=run.now) if run.refresh_seconds else None
    return Report(
        title=f"{run.title}: {_headline(run)}",
        facts=tuple(_facts(run)),
        sections=(
            *_ending_section(run),
            _stage_section(run),
            *([] if current is None else _current_section(current, running=refresh is not None)),
            *finished,
        ),
        refresh=refresh,
    )


def finished_sections(stages: Sequence[StageRun]) -> tuple[Section, ...]:
    """Return what the report says of finished stages, with its plots drawn once."""
    models = evaluations_of(stages)
    return (
        *(evaluation_sections(stages, models) if models else ()),
        *sweep_sections(stages),
        *retention_sections(stages),
        *training_sections(stages),
    )


def _headline(run: LiveRun) -> str:
    current = run.current
    if current is None:
        return run.ending.state if run.ending else "done"
    progress = current.progress
    share = f" {100 * progress.done / progress.total:.0f} %" if progress and progress.total else ""
    if share and current.state != "running":
        share = f" ({share.strip()})"
    return f"{current.name} {current.state}{share}"


def _facts(run: LiveRun) -> Iterator[tuple[str, str]]:
    current = run.current
    if current is None:
        return
    place = run.stages.index(current) + 1
    yield "Stage", f"{current.name} ({current.kind}), {place} of {len(run.stages)}"
    yield "State", current.state
    progress = current.progress
    if progress is not None:
        yield "So far", progress.count
        left = progress.seconds_left
        if run.refresh_seconds and left is not None and progress.done < progress.total:
            yield "Time left in this stage", f"about {duration(left)}"
    yield "Started", f"{run.since:%Y-%m-%d %H:%M:%S} UTC"
    yield "Time", duration((run.now - run.since).total_seconds())
    if progress is not None:
        yield from progress.measured().items()


def _ending_section(run: LiveRun) -> Iterator[Section]:
    if run.ending is not None:
        first, *rest = run.ending.text.splitlines()
        blocks: list[Block] = [Paragraph(text=first)]
        if lines := tuple(line.strip() for line in rest if line.strip()):
            blocks.append(Bullets(items=lines))
        yield Section(name="ending", title=run.ending.title, blocks=tuple(blocks))


def _stage_section(run: LiveRun) -> Section:
    rows = [
        (
            stage.name,
            stage.kind,
            stage.state,
            _figure(stage),
            _time(stage.run.record if stage.run and not stage.is_current else {}),
        )
        for stage in run.stages
    ]
    columns = ("stage", "kind", "state", "figure", "time")
    table = Table(columns=columns, rows=tuple(rows), text_columns=4)
    return Section(name="stages", title="Stages", blocks=(table,))


def _figure(stage: LiveStage) -> str:
    if stage.is_current:
        return last_figures(stage.progress) if stage.progress else ""
    return key_figure(stage.run.record) if stage.run else ""


def _time(record: Row) -> str:
    return duration(float(record["seconds"])) if record.get("seconds") is not None else ""


def _current_section(stage: LiveStage, *, running: bool) -> Iterator[Section]:
    blocks = [*_progress_blocks(stage)]
    if stage.run is not None:
        sections = (*training_sections([stage.run]), *retention_sections([stage.run]))
        blocks += [block for section in sections for block in section.blocks]
        blocks += _latest_answers(stage.run)
        trains = stage.progress is not None and stage.progress.unit == "step"
        if running and trains and not is_training(stage.run):
            blocks.append(Paragraph(text="Curves come with the first logged step.", quiet=True))
    if not blocks:
        text = "No figures yet." if running else "It left no figures."
        blocks.append(Paragraph(text=text, quiet=True))
    title = f"{'Now' if running else stage.state.capitalize()}: {stage.name}"
    yield Section(name="now", title=title, blocks=tuple(blocks))


def _progress_blocks(stage: LiveStage) -> Iterator[Block]:
    progress = stage.progress
    if progress is not None and progress.total:
        yield ProgressBar(text=progress.count, done=progress.done, total=progress.total)


def _latest_answers(stage: StageRun) -> Iterator[Block]:
    """Yield the last answers as the model wrote them, of a stage that asks one."""
    rows = [
        row
        for name in _WRITTEN
        for row in latest_rows(stage.path / name, _SHOWN_ANSWERS)
        if isinstance(row.get("generated"), str)
    ]
    if rows:
        yield Paragraph(text="The last answers, as the model wrote them.", quiet=True)
    for number, row in enumerate(reversed(rows), 1):
        cut = "" if row.get("finished", True) else ", cut at the token limit"
        length = f"{len(row['generated']):,} characters"
        yield Details(title=f"Answer {number}: {length}{cut}", text=shortened(row["generated"]))
