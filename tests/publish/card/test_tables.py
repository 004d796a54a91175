"""What more an evaluation measured of the published model, as tables of the card."""

from pathlib import Path
from typing import Any

import dualign.publish.card.tables as tables
from dualign.evaluation.scores import ModelScores
from dualign.publish.card.tables import further_tables
from dualign.report.render import environment

CELL = {"accuracy": 0.5, "accuracy_ci": [0.25, 0.75], "n": 10}
COUNTS = {"same": 9, "other": 1, "unknown": 0}


def _lines(*evaluations: dict[str, Any]) -> list[str]:
    """The headings and rows of a card's tables."""
    model = ModelScores(model="merged", tasks={})
    found = list(further_tables(model, evaluations))
    template = environment(Path(tables.__file__).parent).get_template("tables.md.jinja")
    text = template.render(further_tables=found)
    return [line for line in text.splitlines() if line.startswith(("|", "#"))]


def _metrics(model: str = "stage:merged", **think: object) -> dict[str, Any]:
    other = {"model": "stage:sft", "tasks": {"words_de": {"think": CELL}}}
    own = {"model": model, "tasks": {"words_de": {"think": {**CELL, **think}}}}
    return {**own, "all": [other, own]}


def test_a_model_whose_languages_were_told_has_a_table_of_them() -> None:
    assert _lines(_metrics(languages={"trace": COUNTS, "answer": COUNTS})) == [
        "### Languages",
        r"| task | mode | accuracy \[95 %\] | traces in the question's language | answers in the question's language |",
        "| --- | --- | --- | --- | --- |",
        r"| words_de | think | 50.0 \[25, 75\] | 90.0 | 90.0 |",
    ]


def test_a_suite_stands_beside_what_was_published() -> None:
    benchmark = {"name": "Words", "tasks": ["words_de"], "published": {"think": 61.5}}
    suite = {"name": "tiny", "model": "acme/base", "source": "its card", "benchmarks": [benchmark]}
    heading, columns, _, row = _lines({**_metrics(), "suite": suite})
    assert heading == "### Suite tiny" and "think, published" in columns and "model" not in columns
    assert row.startswith("| Words |") and row.endswith(r"| 50.0 \[25, 75\] | 61.5 |")


def test_lengths_of_prompts_are_columns() -> None:
    point = {"length": 4096, "score": 0.9, "ci": [0.8, 1.0], "beyond": False, "forms": {}}
    curve = {"language": "en", "mode": "think", "points": [point], "effective": 4096}
    metrics = _metrics()
    metrics["all"][1]["length_curves"] = [curve]
    heading, columns, _, row = _lines(metrics)
    assert (heading, columns) == ("### Long context", "| language | mode | 4k | effective |")
    assert row == r"| en | think | 90.0 \[80, 100\] | ≥ 4k |"


def test_without_such_figures_of_the_model_there_is_no_table() -> None:
    assert _lines(_metrics()) == []
    assert _lines(_metrics("stage:other", languages={"trace": COUNTS, "answer": COUNTS})) == []
    assert _lines({}) == []
