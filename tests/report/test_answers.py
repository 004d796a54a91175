"""The page of answers: what is in it, what is left out, and that foreign text stays text."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dualign.report.answers import Listed, answers_page, browse
from dualign.report.render import render_html, render_markdown
from dualign.report.report import write_report
from dualign.report.runs import evaluations_of, read_stage

from .conftest import ATTACK, PROBLEMS, SKILL, Record, cell, write_evaluation

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def data_of(html: str) -> list[Record]:
    """The problems of a page, read as the script reads them."""
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", html, re.DOTALL)
    (text,) = (text for attributes, text in scripts if 'id="answers-data"' in attributes)
    problems: list[Record] = json.loads(text)
    return problems


@pytest.fixture(scope="module")
def html(pipeline: list[Path]) -> str:
    page = answers_page("Demo", evaluations_of([read_stage(pipeline[-1])]))
    assert page is not None
    return render_html(page)


def test_every_answer_is_there_once_with_both_modes_of_a_model_together(html: str) -> None:
    problems = data_of(html)
    assert len(problems) == 3 * PROBLEMS
    assert [problem["task"] for problem in problems[::PROBLEMS]] == ["sums", "cups", "letters"]
    names = [(model, mode) for model in SKILL for mode in ("think", "no_think")]
    for problem in problems:
        assert [(answer["model"], answer["mode"]) for answer in problem["answers"]] == names


def test_foreign_text_is_data_of_the_page_and_never_markup(html: str) -> None:
    assert len(re.findall("<script", html)) == 2
    attacked = [problem for problem in data_of(html) if problem["id"].endswith("-5")]
    assert len(attacked) == 3
    assert all(answer["answer"] == ATTACK for answer in attacked[0]["answers"])
    assert "innerHTML" not in html
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    assert policy and policy[1].startswith("default-src 'none'") and "sha256-" in policy[1]


def test_only_what_can_be_chosen_is_a_filter(tmp_path: Path) -> None:
    samples = [
        {"task": "sums", "mode": mode, "id": "1", "prompt": "1+1", "answer": "2", "correct": True}
        for mode in ("think", "no_think")
    ]
    model = {"model": "m", "tasks": {"sums": {mode: cell(1, 1) for mode in ("think", "no_think")}}}
    models = evaluations_of([read_stage(write_evaluation(tmp_path, "test", [model], samples))])
    page = answers_page("t", models)
    assert page is not None
    (block,) = page.sections[0].blocks
    assert [name for name, _, _ in block.filters] == ["mode", "outcome"]  # type: ignore[union-attr]
    assert "1 problems, which the page in HTML shows" in render_markdown(page, picture_folder="")


def test_flags_scores_samples_and_budgets_are_named(tmp_path: Path) -> None:
    row = {"task": "t", "mode": "think", "id": "1", "prompt": "q", "answer": "a", "correct": False}
    samples = [
        {**row, "sample": 1, "leaked": True, "finished": False, "reason": "not a number"},
        {**row, "budget": 128, "score": 0.5, "cut_in_think": True, "closed": False},
        {**row, "prompt": "another question under the same id", "scores": {"perplexity": 9.0}},
    ]
    model = {"model": "m", "tasks": {"t": {"think": cell(0, 1)}}}
    models = evaluations_of([read_stage(write_evaluation(tmp_path, "test", [model], samples))])
    page = answers_page("t", models)
    assert page is not None
    first, second = data_of(render_html(page))
    assert [answer["mode"] for answer in first["answers"]] == ["think", "think, budget 128"]
    assert first["answers"][0]["flags"] == ["leaked", "cut at the token limit"]
    assert first["answers"][0]["note"].startswith("sample 2, not a number")
    assert first["answers"][1]["flags"] == ["cut while thinking", "think block not closed"]
    assert "score 0.5" in first["answers"][1]["note"]
    assert second["prompt"] == "another question under the same id"
    # A perplexity is neither right nor wrong.
    assert [answer["right"] for answer in first["answers"]] == [False, False]
    assert [answer["right"] for answer in second["answers"]] == [None]


def _listed(count: int, length: int) -> list[Listed]:
    row = {"mode": "think", "prompt": "q", "thinking": "x" * length, "answer": "a", "correct": True}
    return [(("few", "many")[n > 3], str(n), "", (("m", row),)) for n in range(count)]


def test_texts_are_shortened_before_problems_are_left_out() -> None:
    assert browse(_listed(20, 5000), max_bytes=200_000).note == ""
    shorter = browse(_listed(20, 5000), max_bytes=60_000)
    assert len(shorter.problems) == 20 and "more than 1,600 characters" in shorter.note
    fewer = browse(_listed(20, 5000), max_bytes=6_000)
    assert sum(len(json.dumps(problem)) for problem in fewer.problems) <= 6_500
    assert f"{len(fewer.problems)} of 20 problems are here" in fewer.note
    tasks = [problem["task"] for problem in fewer.problems]
    assert tasks == sorted(tasks) and tasks.count("few") == 4 <= tasks.count("many")


def test_report_without_answers_has_no_such_page(tmp_path: Path, pipeline: list[Path]) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "answers.html").write_text("of an earlier report")
    write_report(tmp_path, pipeline[:1], title="t")
    assert not (tmp_path / "report" / "answers.html").exists()
    assert "answers.html" not in (tmp_path / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser")
def test_a_browser_shows_what_matches_the_filters_of_the_address(html: str, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    (tmp_path / "answers.html").write_text(html, encoding="utf-8")
    address = (tmp_path / "answers.html").as_uri()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}"]

    def shown(filters: str) -> str:
        command = [CHROMIUM, *flags, "--dump-dom", f"{address}#{filters}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    wrong = sum(
        not answer["right"]
        for problem in data_of(html)
        for answer in problem["answers"]
        if (problem["task"], answer["model"], answer["mode"]) == ("cups", "sft", "no_think")
    )
    page = shown("task=cups&model=sft&mode=no_think&outcome=wrong")
    assert f"{wrong} of 360 problems match" in page
    assert page.count("<article") == min(wrong, 30)
    assert "alert('x')&lt;/script&gt;" in shown("text=second+line")
