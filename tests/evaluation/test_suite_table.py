"""The table of a suite, beside what a model card says."""

import json
from pathlib import Path
from typing import Any

import pytest

from dualign import api
from dualign.errors import ConfigError
from dualign.evaluation.suite_table import suite_columns, suite_legend, suite_rows


def cell(accuracy: float, n: int) -> dict[str, Any]:
    return {"accuracy": accuracy, "accuracy_ci": [accuracy - 0.1, accuracy + 0.1], "n": n}


def modes(think: float, no_think: float) -> dict[str, Any]:
    return {"think": cell(think, 10), "no_think": cell(no_think, 10)}


METRICS = {
    "model": "mine",
    "tasks": {"a": modes(0.5, 0.2), "b1": modes(0.6, 0.4), "b2": modes(0.8, 0.2)},
    "suite": {
        "name": "test",
        "model": "org/model",
        "source": "https://example.org",
        "benchmarks": [
            {"name": "A", "tasks": ["a"], "published": {"think": 36.7, "no_think": 9.3}},
            {"name": "B", "tasks": ["b1", "b2"]},
            {"name": "C", "tasks": [], "skipped": "a judge", "published": {"think": 30.8}},
        ],
    },
}


def test_ours_stand_beside_what_was_published() -> None:
    assert suite_columns(METRICS) == (
        *("benchmark", "model", "no_think [95 %]", "no_think, published"),
        *("think [95 %]", "think, published"),
    )
    assert list(suite_rows(METRICS)) == [
        ["A", "mine", "20.0 [10, 30]", "9.3", "50.0 [40, 60]", "36.7"],
        # the mean of 60 and 80; its interval +- 10 / sqrt(2)
        ["B", "mine", "30.0 [23, 37]", "-", "70.0 [63, 77]", "-"],
        ["C", "mine", "not asked", "-", "not asked", "30.8"],
    ]
    assert "C isn't asked: a judge." in suite_legend(METRICS)


def test_a_suite_without_published_figures_has_no_columns_for_them() -> None:
    plain = {**METRICS, "suite": {"name": "x", "benchmarks": [{"name": "A", "tasks": ["a"]}]}}
    assert suite_columns(plain) == ("benchmark", "model", "no_think [95 %]", "think [95 %]")
    assert list(suite_rows(plain)) == [["A", "mine", "20.0 [10, 30]", "50.0 [40, 60]"]]
    assert list(suite_rows({"model": "mine", "tasks": {}})) == []


def test_a_suite_has_a_table_of_its_benchmarks(learnt: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    api.evaluate(str(learnt), [], out, suite="languages", rows=2, max_new_tokens=12)
    metrics = json.loads((out / "metrics.json").read_text())
    assert [entry["tasks"] for entry in metrics["suite"]["benchmarks"]][:2] == [
        ["words_en"],
        ["words_fr"],
    ]
    table = (out / "table.md").read_text()
    assert "## Suite languages" in table and "| Portuguese | learnt |" in table
    with pytest.raises(ConfigError, match="no suite 'language'"):
        api.evaluate(str(learnt), [], out, suite="language")
