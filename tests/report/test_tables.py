"""The table of the terminal."""

import io
from pathlib import Path

from rich.console import Console

from dualign.evaluation.scores import ModelScores
from dualign.report.report import read_models
from dualign.report.tables import summary_table

from .conftest import cell


def _printed(models: tuple[ModelScores, ...]) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=80, no_color=True).print(summary_table(models))
    return out.getvalue().splitlines()


def test_table_fits_80_columns_with_each_task_and_model(pipeline: list[Path]) -> None:
    lines = _printed(read_models(pipeline))
    assert max(map(len, lines)) <= 80
    for word, times in (("sums", 1), ("letters", 1), ("merged", 3), ("base", 3)):
        assert sum(word in line for line in lines) == times


def test_table_shows_accuracies_intervals_and_gain() -> None:
    cells = {"think": cell(80, 100), "no_think": cell(20, 100)}
    text = "\n".join(_printed((ModelScores(model="m[red]", tasks={"sums": cells}),)))
    for expected in ("80.0 [71, 87]", "20.0 [13, 29]", "+60.0", "m[red]"):
        assert expected in text
