"""The report of a pipeline: run directories -> report.html (one file), report.md, report/*.png and
report/answers.html.

No result is fixed: each number and sentence is computed from the stages' files, and a section for
which the stages wrote nothing is left out.
"""

from collections.abc import Sequence
from pathlib import Path

from dualign.errors import CheckpointError
from dualign.evaluation.scores import ModelScores
from dualign.report.answers import answers_page
from dualign.report.blocks import Gallery, Report
from dualign.report.evaluation import evaluation_sections
from dualign.report.render import render_html, render_markdown
from dualign.report.retention import retention_sections
from dualign.report.runs import StageRun, evaluations_of, read_stage
from dualign.report.stages import facts, provenance_sections, training_sections
from dualign.report.sweep import sweep_sections

PAGE = "report.html"
_BESIDE = "report"  # the folder of the plots and of the page of answers
_ANSWERS = "answers.html"


def write_report(output_dir: Path, stages: Sequence[Path], *, title: str) -> None:
    """Write report.html, report.md and report/*.png into `output_dir`.

    Args:
        stages: the run directories of a pipeline, in their order.

    Raises:
        CheckpointError: a run directory is incomplete or damaged.
    """
    if not stages:
        raise CheckpointError(
            f"nothing to report in {output_dir}: no stage was named. "
            "Expected the run directories of a pipeline."
        )
    runs = [read_stage(path) for path in stages]
    answers = answers_page(title, evaluations_of(runs))
    pages = (("All answers", f"{_BESIDE}/{_ANSWERS}"),) if answers else ()
    report = _build_report(runs, title=title, pages=pages)
    html, markdown = render_html(report), render_markdown(report, picture_folder=_BESIDE)
    write_pictures(output_dir / _BESIDE, report)
    if answers:
        write_page(output_dir / _BESIDE / _ANSWERS, render_html(answers))
    else:
        (output_dir / _BESIDE / _ANSWERS).unlink(missing_ok=True)
    write_page(output_dir / PAGE, html)
    write_page(output_dir / "report.md", markdown)


def write_page(file: Path, text: str) -> None:
    """Write a page atomically: a browser never sees half of it."""
    aside = file.with_name(f".{file.name}.new")
    # Code points that UTF-8 can't hold (a lone surrogate from a cut emoji) show as question marks.
    aside.write_text(text, encoding="utf-8", errors="replace")
    aside.replace(file)


def read_models(stages: Sequence[Path]) -> tuple[ModelScores, ...]:
    """Read the evaluated models of a pipeline, for `dualign.report.tables.summary_table`."""
    return tuple(model.scores for model in evaluations_of([read_stage(path) for path in stages]))


def _build_report(
    stages: Sequence[StageRun], *, title: str, pages: tuple[tuple[str, str], ...]
) -> Report:
    """Return the report as blocks."""
    models = evaluations_of(stages)
    return Report(
        title=title,
        facts=facts(stages, models),
        pages=pages,
        sections=(
            *evaluation_sections(stages, models),
            *sweep_sections(stages),
            *retention_sections(stages),
            *training_sections(stages),
            *provenance_sections(stages),
        ),
    )


def write_pictures(folder: Path, report: Report) -> None:
    """Write the plots; those of an earlier report are deleted."""
    pictures = [
        picture
        for section in report.sections
        for block in section.blocks
        if isinstance(block, Gallery)
        for picture in block.pictures
    ]
    # All are drawn before one is written.
    files = {f"{picture.name}.png": picture.png for picture in pictures}
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
