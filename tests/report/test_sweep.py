"""A sweep's table and plots, from a made-up sweep.json."""

from typing import Any

import pytest

from dualign.report.blocks import Report
from dualign.report.render import render_html, render_markdown
from dualign.report.runs import StageRun
from dualign.report.sweep import columns, pictures, rows, sweep_markdown, sweep_sections
from dualign.report.sweep_plots import FRONT, WINNER

PNG = b"\x89PNG"


def entry(think: float, no_think: float, **fields: Any) -> dict[str, Any]:
    modes = {
        mode: {"accuracy": value, "accuracy_ci": [value - 0.1, min(value + 0.1, 1.0)]}
        for mode, value in (("think", think), ("no_think", no_think))
    }
    modes["think"] |= {"closed_rate": 1.0, "cut_in_think_rate": 0.0}
    modes["no_think"]["leak_rate"] = 0.0
    mean = (think + no_think) / 2
    return {
        "label": "", "value": mean, "value_ci": [mean - 0.1, mean + 0.1], "modes": modes, "tasks": {},
        "against": {"value": -0.1, "ci": [-0.2, 0.05]}, "front": False, "best": False, "failed": "",
        "cached": False, "seconds": 61.0, **fields,
    }  # fmt: skip


def sweep_of(*entries: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "name": "line", "objective": "mean", "vary": ["a"], "says": ["Best: <b>a</b>."],
        "candidates": list(entries), **fields,
    }  # fmt: skip


def along(value: Any, think: float, no_think: float, **fields: Any) -> dict[str, Any]:
    return entry(think, no_think, point={"a": value}, label=f"a = {value}", **fields)


LINE = sweep_of(
    along(0.1, 0.5, 0.3),
    along(0.5, 0.8, 0.2, front=True, best=True, against=None),
    along(0.9, 0.7, 0.4, front=True, cached=True),
    along(2.0, 0.0, 0.0, failed="too large"),
)


def test_the_table_has_a_line_for_each_candidate_and_marks_front_and_winner() -> None:
    lines = list(rows(LINE))
    assert all(len(line) == len(columns(LINE)) for line in lines)
    assert lines[0][:5] == (
        "0.1",
        "50.0 [40, 60]",
        "30.0 [20, 40]",
        "40.0",
        "(-10.0 [-20.0, +5.0])",
    )
    assert [line[5] for line in lines[:3]] == ["", "best", "*"]
    assert [line[-1] for line in lines[:3]] == ["1 min 01 s", "1 min 01 s", "known"]
    assert lines[3][1] == "can't be merged"
    assert "| a | think | no_think | mean |" in sweep_markdown(LINE)


def test_plots_show_the_front_the_winner_and_the_scores_along_the_parameter() -> None:
    pareto, scores = pictures(LINE)
    assert (pareto.name, scores.name) == ("pareto", "scores")
    assert FRONT.lower() in pareto.svg.lower() and WINNER.lower() in pareto.svg.lower()
    assert pareto.png.startswith(PNG) and scores.png.startswith(PNG)
    again = pictures(LINE)[0]
    assert (again.svg, again.png) == (pareto.svg, pareto.png), "the same numbers, the same bytes"


@pytest.mark.parametrize("point", [{"a": "ties"}, {"a": True}, {"a": "$x"}])
def test_values_that_are_no_numbers_have_no_axis(point: dict[str, Any]) -> None:
    candidate = entry(
        0.5, 0.5, point=point, label=f"a = {point['a']}", front=True, best=True, against=None
    )
    assert [picture.name for picture in pictures(sweep_of(candidate))] == ["pareto"]


def test_a_soup_is_named_by_its_models_and_a_command_has_one_score() -> None:
    candidate = entry(
        0.5, 0.5, point={"soup": [0]}, label="apo | sft", front=True, best=True, against=None
    )
    soup = sweep_of(candidate, vary=[])
    assert next(rows(soup))[0] == "apo | sft"
    assert "apo \\| sft" in sweep_markdown(soup)
    bare = {**along(0.5, 0, 0, best=True, against=None), "modes": {}, "value": 12.5}
    command = sweep_of(bare, objective="command")
    assert next(rows(command)) == ("0.5", "12.5", "best", "1 min 01 s")
    assert [picture.name for picture in pictures(command)] == ["scores"]


def test_the_report_has_a_section_for_it_with_foreign_text_escaped(tmp_path) -> None:
    stage = StageRun(path=tmp_path, name="mix", kind="sweep", record={}, sweep=LINE)
    other = StageRun(path=tmp_path, name="sft", kind="sft", record={})
    sections = tuple(sweep_sections([other, stage]))
    assert [section.name for section in sections] == ["sweep-mix"]
    report = Report(title="t", facts=(), sections=sections)
    assert "Best: &lt;b&gt;a&lt;/b&gt;." in render_html(report)
    assert "(report/mix-pareto.png)" in render_markdown(report, picture_folder="report")


def test_each_task_has_its_accuracies_where_there_are_several() -> None:
    cell = {mode: {"accuracy": 0.5} for mode in ("think", "no_think")}
    candidate = along(0.5, 0.5, 0.5, tasks={"sums": cell, "routes": cell}, best=True, against=None)
    text = sweep_markdown(sweep_of(candidate))
    assert "| candidate | sums, think | sums, no_think | routes, think | routes, no_think |" in text
