"""Two evaluated models, problem by problem: tiny models whose answers are known, and made-up runs."""

import json
import shutil
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import dualign
from dualign.cli.main import main
from dualign.errors import CheckpointError, DualignError, EvaluationError
from dualign.report.compare import OUTCOMES, compare
from dualign.report.compare_pages import print_comparison

from .conftest import Record, cell, write_evaluation, write_stage
from .test_answers import data_of

Evaluated = dict[str, Path]


@pytest.fixture(scope="module")
def evaluated(learnt: Path, task_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """The learnt model with room for its traces, and without: real runs of `dualign.evaluate`."""
    folder = tmp_path_factory.mktemp("evaluated")
    for name, limit in (("whole", 40), ("short", 5)):
        dualign.evaluate(learnt, [task_file], folder / name, max_new_tokens=limit)
    return {name: folder / name for name in ("whole", "short")}


def test_what_turned_wrong_is_counted_and_tested(evaluated: Evaluated) -> None:
    comparison = dualign.compare(evaluated["whole"], evaluated["short"])
    think, no_think = comparison.tasks
    assert (think.before.accuracy, think.after.accuracy, think.change.value) == (1.0, 0.0, -1.0)
    assert [think.count(outcome) for outcome in OUTCOMES] == [4, 0, 0, 0]
    assert think.p == pytest.approx(2 * 0.5**4)
    assert think.p_adjusted == pytest.approx(2 * 2 * 0.5**4)  # the smaller of two p values
    assert [no_think.count(outcome) for outcome in OUTCOMES] == [0, 0, 3, 1]
    assert (no_think.change.value, no_think.p_adjusted) == (0.0, 1.0)
    problem = think.problems[0]
    assert (problem.before[0]["answer"], problem.outcome) == ("3", "turned wrong")
    assert problem.after[0]["cut_in_think"] is True
    assert list(comparison.notes()) == []


def test_the_other_way_round_they_turned_right(evaluated: Evaluated) -> None:
    think, _ = compare(evaluated["short"], evaluated["whole"]).tasks
    assert [think.count(outcome) for outcome in OUTCOMES] == [0, 4, 0, 0]
    assert think.change.value == 1.0


def test_terminal_and_page_show_both_answers(
    evaluated: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "pages" / "compared.html"
    sides = [str(evaluated[name]) for name in ("whole", "short")]
    assert main(["compare", *sides, "--html", str(page), "--show", "2"]) == 0
    text = capsys.readouterr().out
    assert "whole:" in text and "short:" in text  # one model: told apart by the folders
    assert "-100.0 [" in text and "0.250" in text
    assert text.count("turned wrong: sums, think, problem") == 2 and "2 more turned wrong." in text
    assert "What is 1+2?" in text and "one and two" in text
    problems = data_of(page.read_text(encoding="utf-8"))
    assert [problem["kind"] for problem in problems[:5]] == ["turned wrong"] * 4 + ["wrong in both"]
    assert [len(problem["answers"]) for problem in problems] == [2] * 8
    before, after = problems[0]["answers"]
    assert (before["right"], after["right"]) == (True, False)
    assert "cut while thinking" in after["flags"]


@pytest.mark.parametrize(("width", "shown"), [(80, "-100.0 [-100, "), (160, "100.0 [51, 100]")])
def test_the_table_fits_the_terminal(evaluated: Evaluated, width: int, shown: str) -> None:
    console = Console(width=width, record=True, file=StringIO())
    print_comparison(compare(evaluated["whole"], evaluated["short"]), console, shown=0)
    text = console.export_text()
    assert "\u2026" not in text and max(map(len, text.splitlines())) <= width
    assert shown in text and "no_think" in text


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two models, of which the second answers one problem more and one less."""
    folder = tmp_path / "run"
    write_stage(folder, "sft", "sft")
    _evaluation(folder, "eval", {"base": "00110", "sft": "01010"})
    return folder


def _evaluation(folder: Path, name: str, models: dict[str, str], **changes: object) -> Path:
    """An evaluation in no_think; a digit says whether the problem of its place is right."""
    samples = [
        _row(model, number, digit) | changes
        for model, digits in models.items()
        for number, digit in enumerate(digits)
    ]
    entries = [
        {
            "model": model,
            "tasks": {samples[0]["task"]: {"no_think": cell(digits.count("1"), len(digits))}},
        }
        for model, digits in models.items()
    ]
    return write_evaluation(folder, name, entries, samples)


def _row(model: str, number: int, digit: str) -> Record:
    question = {"id": str(number), "prompt": f"{number}+1?", "expected": str(number + 1)}
    answer = {"answer": digit, "correct": digit == "1"}
    return {"model": model, "task": "sums", "mode": "no_think", **question, **answer}


def test_a_model_is_named_by_run_stage_folder_or_label(run: Path) -> None:
    for reference in (f"{run}:sft", run, run / "eval", run / "sft", f"{run / 'eval'}:sft"):
        comparison = compare(f"{run}:base", reference)
        (task,) = comparison.tasks
        assert comparison.names == ("base", "sft")
        assert [task.count(outcome) for outcome in OUTCOMES] == [1, 1, 2, 1]
        assert task.change.value == 0.0 and task.think_tokens is None


def test_other_problems_are_named_and_the_shared_ones_compared(run: Path, tmp_path: Path) -> None:
    other = _evaluation(tmp_path, "other", {"sft": "1111111"})
    lines = (other / "samples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines][1:]
    rows[0]["prompt"] = "asked otherwise"
    (other / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    comparison = compare(f"{run}:sft", other)
    (task,) = comparison.tasks
    assert [problem.id for problem in task.problems] == ["2", "3", "4"]
    assert comparison.names == ("run:sft", "other:sft")
    assert list(comparison.notes()) == [
        "sums, no_think: problems that aren't compared, only of run:sft: 1 (0).",
        "sums, no_think: problems that aren't compared, only of other:sft: 2 (5, 6).",
        "sums, no_think: problems that aren't compared, with another prompt or expected answer: 1 (1).",
    ]


def test_settings_and_tasks_that_differ_are_named(run: Path, tmp_path: Path) -> None:
    other = _evaluation(tmp_path, "other", {"sft": "11111"})
    record = json.loads((other / "run.json").read_text())
    record["config"] |= {"max_new_tokens": 8}
    (other / "run.json").write_text(json.dumps(record))
    _evaluation(run, "more", {"sft": "1"}, task="cups")
    notes = list(compare(f"{run}:sft", other).notes())
    assert notes[0] == "Only run:sft was asked cups: not compared."
    assert "Evaluated with another max_new_tokens: - and 8." in notes


def test_several_samples_turn_by_their_majority(tmp_path: Path) -> None:
    for name, right in (("few", 1), ("most", 3)):
        rows = [_row("m", 0, str(int(number < right))) | {"sample": number} for number in range(4)]
        model = {"model": "m", "tasks": {"sums": {"no_think": cell(right, 4)}}}
        write_evaluation(tmp_path, name, [model], rows)
    (sampled,) = compare(tmp_path / "few", tmp_path / "most").tasks
    assert (sampled.change.value, sampled.count("turned right"), sampled.before.n) == (0.5, 1, 1)


def test_a_budget_is_a_row_of_its_own_and_what_it_did_not_cut_counts_whole(tmp_path: Path) -> None:
    """Problem 0 is cut in both and gets right, 1 in the first alone, 2 in none."""
    for name, cut in (("first", {0: "0", 1: "0"}), ("second", {0: "1"})):
        rows = [_row("m", number, "1") | {"mode": "think"} for number in range(3)]
        rows += [
            _row("m", number, digit) | {"mode": "think", "budget": 128}
            for number, digit in cut.items()
        ]
        model = {"model": "m", "tasks": {"sums": {"think": cell(3, 3)}}}
        write_evaluation(tmp_path, name, [model], rows)
    whole, budgeted = compare(tmp_path / "first", tmp_path / "second").tasks
    assert (whole.mode, whole.change.value) == ("think", 0.0)
    assert (budgeted.mode, budgeted.before.n) == ("think, budget 128", 3)
    assert (budgeted.p, budgeted.p_adjusted) == (0.5, 0.5)  # the only row of a budget
    assert [problem.outcome for problem in budgeted.problems] == [
        "turned right", "turned right", "right in both",
    ]  # fmt: skip


def test_a_budget_that_cut_nothing_of_one_model_is_compared(tmp_path: Path) -> None:
    budgets = [{"budget": 128}, {"budget": 512}, {"budget": None}]
    for name, cut in (("long", ["0", "1"]), ("short", [])):
        rows = [_row("m", number, "1") | {"mode": "think"} for number in range(2)]
        rows += [
            _row("m", number, digit) | {"mode": "think", "budget": 128}
            for number, digit in enumerate(cut)
        ]
        think = cell(2, 2) | {"budgets": budgets}
        write_evaluation(
            tmp_path, name, [{"model": "m", "tasks": {"sums": {"think": think}}}], rows
        )
    # Neither was cut at 512, where both are as without a budget.
    whole, budgeted = compare(tmp_path / "long", tmp_path / "short").tasks
    assert (whole.mode, budgeted.mode) == ("think", "think, budget 128")
    assert (budgeted.before.accuracy, budgeted.after.accuracy) == (0.5, 1.0)


def test_answers_that_are_not_right_or_wrong_are_not_compared(run: Path, tmp_path: Path) -> None:
    rows = [_row("m", 0, "1"), _row("m", 0, "0") | {"task": "read", "scores": {"perplexity": 9.0}}]
    tasks = {"sums": {"no_think": cell(1, 1)}, "read": {"no_think": cell(0, 1)}}
    write_evaluation(tmp_path, "other", [{"model": "m", "tasks": tasks}], rows)
    comparison = compare(f"{run}:sft", tmp_path / "other")
    assert [task.task for task in comparison.tasks] == ["sums"]
    assert "Without a metric from 0 to 1: read: not compared." in list(comparison.notes())


def _refused(run: Path, folder: Path) -> Iterator[tuple[str, str, str]]:
    yield f"{run}:base", f"{run}:base", "are the same model, base, of one evaluation"
    yield f"{run}:apo", str(run), "no model 'apo' was evaluated there; expected one of base, sft"
    yield str(folder / "none"), str(run), "none: no such folder; expected the folder of an"
    yield str(folder / "empty"), str(run), "empty: nothing was evaluated there; expected"
    other = _evaluation(folder, "cups", {"m": "1"}, task="cups")
    yield f"{run}:sft", str(other), "the first was asked sums; the second cups"
    other = _evaluation(folder, "ids", {"m": "1"}, id="a-1")
    yield f"{run}:sft", str(other), r"none of its problems: the first was asked 0, 1, 2, 3, 4; the "
    other = _evaluation(folder, "prompts", {"m": "1"}, prompt="x")
    yield f"{run}:sft", str(other), "same ids in both, such as 0, but other prompts"
    other = _evaluation(folder, "lost", {"m": "1"})
    (other / "samples.jsonl").unlink()
    yield f"{run}:sft", str(other), "the answers of m aren't there"


def test_what_cannot_be_compared_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for before, after, message in _refused(run, tmp_path):
        with pytest.raises((CheckpointError, EvaluationError), match=message):
            compare(before, after)
    assert main(["compare", str(run), str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_page_that_cannot_be_written_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DualignError, match="can't be written"):
        dualign.compare(f"{run}:base", f"{run}:sft", html=tmp_path)


def test_a_damaged_evaluation_is_refused(run: Path) -> None:
    shutil.copytree(run / "eval", run.parent / "copy")
    (run.parent / "copy" / "samples.jsonl").write_text("{")
    with pytest.raises(CheckpointError, match=r"samples.jsonl:1 isn't JSON"):
        compare(run.parent / "copy", run)
