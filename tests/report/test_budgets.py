"""Thinking budgets in the report: table, sentences, curve."""

from pathlib import Path

from dualign.evaluation.scores import ModelScores
from dualign.report.budgets import budget_plots, budget_sections
from dualign.report.conclusions import Evaluated
from dualign.report.plots import COLORS
from dualign.report.report import write_report

from .conftest import Record, cell, write_evaluation


def _budgets(*right: int) -> Record:
    """Think mode of ten problems at budgets of 0, 128 and none."""
    entries = [
        cell(
            count, 10, budget=budget, against_none=(count - right[-1]) / 10, against_none_ci=[-0.3, 0.1],
            think_tokens=budget or 300.5, answer_tokens=5.0, closed_by_budget=0.5,
        )
        for budget, count in zip((0, 128, None), right, strict=True)
    ]  # fmt: skip
    return cell(
        right[-1], 10, budgets=entries, budget_area=0.4, budget_95=128,
        budget_tokens={"written": 4000, "apart": 7000},
    )  # fmt: skip


def _model(name: str, *right: int) -> ModelScores:
    return ModelScores(
        model=name, tasks={"sums": {"think": _budgets(*right), "no_think": cell(1, 10)}}
    )


def test_budgets_are_a_table_sentences_and_a_curve() -> None:
    models = [_model("sft", 1, 6, 7), _model("apo", 2, 8, 8)]
    models.append(ModelScores(model="old", tasks={"sums": {"think": cell(3, 10)}}))
    evaluated = Evaluated(stages=(), models=(), steps=())
    assert list(budget_sections(evaluated)) == []
    (picture,) = budget_plots(models)
    assert picture.alt == "sums: accuracy by thinking budget (0: 20.0, 128: 80.0, none: 80.0)"
    assert COLORS["think"].lower() in picture.svg.lower()
    assert picture.png.startswith(b"\x89PNG")


def test_the_report_shows_them(tmp_path: Path) -> None:
    models = [
        {"model": name, "tasks": {"sums": {"think": _budgets(*right), "no_think": cell(1, 10)}}}
        for name, right in (("sft", (1, 6, 7)), ("apo", (2, 8, 8)))
    ]
    folder = write_evaluation(tmp_path, "test", models)
    write_report(tmp_path, [folder], title="made up")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Thinking budgets" in text
    assert r"| sums | apo | 128 | 80.0 \[49, 94\] |" in text
    assert "95 % of the whole accuracy from a budget of 128 tokens" in text
    assert "4,000 tokens written for all budgets, 7,000 if each had been asked alone" in text
    assert (tmp_path / "report/budgets-0.png").is_file()
