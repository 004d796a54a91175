"""The report of a pipeline: run directories -> report.html (one file), report.md (plots beside).

It holds no fixed result: each number and each sentence is computed from what the stages wrote, and
a part for which nothing was written is left out.
"""

from collections.abc import Sequence
from pathlib import Path

from dualign.errors import CheckpointError
from dualign.evaluation.scores import ModelScores
from dualign.report.blocks import Gallery, Report
from dualign.report.evaluation import evaluation_sections
from dualign.report.html import render_html
from dualign.report.markdown import render_markdown
from dualign.report.runs import StageRun, evaluations_of, read_stage
from dualign.report.stages import facts, provenance_sections, training_sections
from dualign.report.sweep import sweep_sections

PICTURES = "report"


def write_report(output_dir: Path, stages: Sequence[Path], *, title: str) -> None:
    """Writes report.html, report.md and report/*.png into `output_dir`.

    `stages` are the run directories of a pipeline in their order. Raises CheckpointError where one
    is incomplete or damaged.
    """
    if not stages:
        raise CheckpointError(
            f"nothing to report in {output_dir}: no stage was named. "
            "Expected the run directories of a pipeline."
        )
    report = build_report([read_stage(path) for path in stages], title=title)
    _write_pictures(output_dir / PICTURES, report)
    # Code points that UTF-8 can't hold (a lone surrogate from a cut emoji) show as question marks.
    html, markdown = render_html(report), render_markdown(report, picture_folder=PICTURES)
    (output_dir / "report.html").write_text(html, encoding="utf-8", errors="replace")
    (output_dir / "report.md").write_text(markdown, encoding="utf-8", errors="replace")


def read_models(stages: Sequence[Path]) -> tuple[ModelScores, ...]:
    """The evaluated models of a pipeline, for `dualign.report.tables.summary_table`."""
    return tuple(model.scores for model in evaluations_of([read_stage(path) for path in stages]))


def build_report(stages: Sequence[StageRun], *, title: str) -> Report:
    """The report before it is HTML or Markdown."""
    models = evaluations_of(stages)
    return Report(
        title=title,
        facts=facts(stages, models),
        sections=(
            *evaluation_sections(stages, models),
            *sweep_sections(stages),
            *training_sections(stages),
            *provenance_sections(stages),
        ),
    )


def _write_pictures(folder: Path, report: Report) -> None:
    """Pictures of an earlier report, of stages that are no more, go."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for section in report.sections:
        for block in section.blocks:
            if isinstance(block, Gallery):
                for picture in block.pictures:
                    (folder / f"{picture.name}.png").write_bytes(picture.png)
