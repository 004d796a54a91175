"""Tables as a terminal of 120 columns and Markdown show them."""

import io

from rich.console import Console

from dualign.data.conversation import MODES
from dualign.evaluation.metrics import compare, with_gain
from dualign.evaluation.scores import read_scores
from dualign.evaluation.significance import needed_note, with_adjusted
from dualign.evaluation.table import markdown_table, terminal_tables
from dualign.report.accuracy import sampled_sections
from dualign.report.conclusions import Evaluated
from dualign.report.runs import ModelEvaluation
from tests.evaluation.test_sampled import line


def entry(model, right, count):
    """Forty problems of each task with `count` answers each, of which `right` are."""
    tasks = {
        task: {
            mode: [
                line(
                    i, correct=number < right and i % 4 > 0, sample=number, vote=str(number < right)
                )
                for i in range(40)
                for number in range(count)
            ]
            for mode in MODES
        }
        for task in ("gsm8k_cot_zeroshot", "ifeval")
    }
    return tasks, {"model": model, "mode_switch": True, "tasks": with_gain(tasks), "pairs": {}}


def metrics(count=4):
    before, base = entry("HuggingFaceTB/SmolLM3-3B-Base", 1, count)
    after, tuned = entry("stage:apo", count, count)
    changes = [
        {"model": "stage:apo", "against": base["model"], "task": task, "mode": mode}
        | compare(before[task][mode], after[task][mode])
        for task in before
        for mode in MODES
    ]
    return {**tuned, "all": [base, tuned], "changes": with_adjusted(changes)}


def shown(table, width=120):
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue()


def test_the_table_of_tasks_fits_120_columns_with_every_cell_whole():
    text = shown(next(terminal_tables(metrics())))
    assert max(map(len, text.splitlines())) <= 120
    assert "…" not in text
    for cell in ("apo", "no_think", "75.0 [60, 86]", "limit", "4 answers to each problem"):
        assert cell in text


def test_several_answers_have_a_table_of_their_own():
    _, table = terminal_tables(metrics())
    text = shown(table)
    assert "pass@4" in text and "majority" in text and "…" not in text
    assert len(list(terminal_tables(metrics(count=1)))) == 1
    _, table = terminal_tables(metrics(count=64))
    wide = shown(table)
    assert "pass@64" in wide and "…" not in wide and max(map(len, wide.splitlines())) <= 120


def test_markdown_marks_what_stays_after_the_correction_and_says_what_would_be_needed():
    text = markdown_table(metrics())
    changes = [row for row in text.splitlines() if row.startswith("| apo | HuggingFaceTB")]
    assert len(changes) == 4 and all("< 0.001 *" in row for row in changes)
    assert "A difference of 5 points would need about: gsm8k_cot_zeroshot" in text
    assert "(this set has 40)" in text
    alone, base = entry("base", 1, 1)
    alone = markdown_table({**base, "all": [base], "changes": []})
    assert "A difference of 5 points between two unrelated models would need about:" in alone


def test_names_of_tasks_are_no_markup_and_many_are_counted():
    tasks = {
        f"[bold]task {i}": {"think": {"n": 40, "problems_needed": 1000 + i}} for i in range(10)
    }
    note = needed_note(tasks, [{"task": "[bold]task 1", "problems_needed": 62}])
    assert "[bold]task 0 1,000 problems (this set has 40), [bold]task 1 62 problems" in note
    assert note.endswith("2 other tasks as metrics.json has it.")
    figures = metrics()
    figures["tasks"] = {"[bold]x": figures["tasks"]["ifeval"]}
    assert "about: [bold]x" in shown(next(terminal_tables(figures)))


def test_tables_of_older_metrics_stay_readable():
    old = metrics(count=1)
    for task in (
        *old["tasks"].values(),
        *(t for part in old["all"] for t in part["tasks"].values()),
    ):
        for mode in MODES:
            task[mode].pop("problems_needed", None)
    old["changes"] = [
        {
            key: item
            for key, item in change.items()
            if key not in ("p", "p_adjusted", "problems_needed")
        }
        for change in old["changes"]
    ]
    assert "would need" not in markdown_table(old)
    assert "| apo |" in markdown_table(old)


def test_the_report_shows_several_answers_and_counts_them():
    figures = metrics()
    models = read_scores(figures, where="metrics.json")
    assert models[-1].score("ifeval", "think").count == "40 x 4"
    evaluated = Evaluated(
        stages=(), models=[ModelEvaluation(scores=m, samples=()) for m in models], steps=()
    )
    (section,) = sampled_sections(evaluated)
    table = section.blocks[-1]
    assert table.columns[3:] == ("answers", "pass@1", "pass@2", "pass@4", "majority")
    assert ("ifeval", "apo", "think", "4", *["75.0 [60, 86]"] * 4) in table.rows
    single = read_scores(metrics(count=1), where="metrics.json")
    evaluated = Evaluated(
        stages=(), models=[ModelEvaluation(scores=m, samples=()) for m in single], steps=()
    )
    assert not list(sampled_sections(evaluated))
