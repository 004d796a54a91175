"""The section on suites: their benchmarks in both modes, beside published figures."""

from collections.abc import Iterator

from dualign.evaluation.suite_table import suite_columns, suite_legend, suite_rows
from dualign.report.blocks import Paragraph, Section, Table
from dualign.report.conclusions import Evaluated


def suite_sections(evaluated: Evaluated) -> Iterator[Section]:
    """Yield a section for each stage that asked a suite."""
    for stage in evaluated.stages:
        metrics = stage.metrics or {}
        rows = tuple(map(tuple, suite_rows(metrics)))
        if rows:
            table = Table(columns=suite_columns(metrics), rows=rows, text_columns=2)
            blocks = (Paragraph(text=suite_legend(metrics), quiet=True), table)
            name, title = f"suite-{stage.name}", f"Suite {metrics['suite']['name']}"
            yield Section(name=name, title=title, blocks=blocks)
