"""Tables of the card on what more an evaluation measured: languages, lengths of prompts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dualign.evaluation.language_table import LANGUAGE_COLUMNS, LANGUAGE_LEGEND, language_rows
from dualign.report.runs import ModelEvaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class CardTable:
    """A table with its heading and what explains it."""

    title: str
    legend: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def further_tables(model: ModelEvaluation) -> Iterator[CardTable]:
    """Yield the tables for which the published model has figures."""
    for table_of in _TABLES:
        table = table_of(model)
        if table.rows:
            yield table


def _languages(model: ModelEvaluation) -> CardTable:
    entry = {"model": model.scores.model, "tasks": model.scores.tasks}
    rows = [[task, *cells] for task, _, *cells in language_rows({"all": [entry]})]
    columns = [name for name in LANGUAGE_COLUMNS if name != "model"]
    return CardTable(title="Languages", legend=LANGUAGE_LEGEND, columns=columns, rows=rows)


_TABLES: tuple[Callable[[ModelEvaluation], CardTable], ...] = (_languages,)
