"""Tables of the card on what more an evaluation measured: a suite, languages, lengths of prompts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualign.evaluation.language_table import LANGUAGE_COLUMNS, LANGUAGE_LEGEND, language_rows
from dualign.evaluation.lengths import LENGTHS_LEGEND, curves_of, length_columns, length_rows
from dualign.evaluation.scores import ModelScores, short_label
from dualign.evaluation.suite_table import suite_columns, suite_legend, suite_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class CardTable:
    """A table with its heading and what explains it."""

    title: str
    legend: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def further_tables(
    model: ModelScores, evaluations: Sequence[Mapping[str, Any]]
) -> Iterator[CardTable]:
    """Yield the tables for which the published model has figures.

    Args:
        evaluations: metrics.json of each evaluation stage, under public names.
    """
    for metrics in evaluations:
        for tables in _TABLES:
            yield from tables(_of_model(model, metrics))


def _of_model(model: ModelScores, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the metrics with those of one model alone; without entries if it wasn't asked there."""
    entries = [
        entry
        for entry in metrics.get("all") or [metrics]
        if short_label(str(entry.get("model"))) == model.model
    ]
    return {**metrics, "all": entries}


def _suite(metrics: Mapping[str, Any]) -> Iterator[CardTable]:
    if metrics["all"] and (rows := list(suite_rows(metrics))):
        yield _without_model(
            f"Suite {metrics['suite']['name']}", suite_legend(metrics), suite_columns(metrics), rows
        )


def _languages(metrics: Mapping[str, Any]) -> Iterator[CardTable]:
    if metrics["all"] and (rows := list(language_rows(metrics))):
        yield _without_model("Languages", LANGUAGE_LEGEND, LANGUAGE_COLUMNS, rows)


def _lengths(metrics: Mapping[str, Any]) -> Iterator[CardTable]:
    if metrics["all"] and (curves := curves_of(metrics)):
        rows = list(length_rows(curves))
        yield _without_model("Long context", LENGTHS_LEGEND, length_columns(curves), rows)


def _without_model(
    title: str, legend: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> CardTable:
    """Return the table without the column of models, since a card is of one."""
    place = list(columns).index("model")
    cells = [[cell for at, cell in enumerate(row) if at != place] for row in (columns, *rows)]
    return CardTable(title=title, legend=legend, columns=cells[0], rows=cells[1:])


_TABLES: tuple[Callable[[Mapping[str, Any]], Iterator[CardTable]], ...] = (
    _suite,
    _languages,
    _lengths,
)
