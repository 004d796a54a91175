"""What more an evaluation measured of the published model, as tables of the card."""

from pathlib import Path

import dualign.publish.card.tables as tables
from dualign.evaluation.scores import ModelScores
from dualign.publish.card.tables import further_tables
from dualign.report.render import environment
from dualign.report.runs import ModelEvaluation


def _model(**think: object) -> ModelEvaluation:
    cell = {"accuracy": 0.5, "accuracy_ci": [0.25, 0.75], "n": 10}
    scores = ModelScores(model="merged", tasks={"words_de": {"think": {**cell, **think}}})
    return ModelEvaluation(scores=scores, samples=())


def test_a_model_whose_languages_were_told_has_a_table_of_them() -> None:
    counts = {"same": 9, "other": 1, "unknown": 0}
    found = list(further_tables(_model(languages={"trace": counts, "answer": counts})))
    template = environment(Path(tables.__file__).parent).get_template("tables.md.jinja")
    text = template.render(further_tables=found)
    assert "### Languages\n" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines == [
        r"| task | mode | accuracy \[95 %\] | traces in the question's language | answers in the question's language |",
        "| --- | --- | --- | --- | --- |",
        r"| words_de | think | 50.0 \[25, 75\] | 90.0 | 90.0 |",
    ]


def test_without_such_figures_there_is_no_table() -> None:
    assert list(further_tables(_model())) == []
