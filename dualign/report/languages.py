"""The section on languages: accuracy in each, and whether traces and answers keep to them."""

from collections.abc import Iterator, Sequence

from dualign.evaluation.language_table import LANGUAGE_COLUMNS, LANGUAGE_LEGEND, language_rows
from dualign.evaluation.scores import ModelScores
from dualign.report.blocks import Paragraph, Section, Table
from dualign.report.conclusions import Evaluated


def language_sections(evaluated: Evaluated) -> Iterator[Section]:
    """Yield the tasks whose language is known, for all models in both modes."""
    rows = tuple(map(tuple, _rows(evaluated.scores)))
    if rows:
        table = Table(columns=LANGUAGE_COLUMNS, rows=rows, text_columns=3)
        blocks = (Paragraph(text=LANGUAGE_LEGEND, quiet=True), table)
        yield Section(name="languages", title="Languages", blocks=blocks)


def _rows(models: Sequence[ModelScores]) -> list[list[str]]:
    """Return the cells of `LANGUAGE_COLUMNS` for evaluated models."""
    entries = [{"model": model.model, "tasks": model.tasks} for model in models]
    return list(language_rows({"all": entries})) if entries else []
