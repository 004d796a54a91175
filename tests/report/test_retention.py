"""What a stage retained is in the report and the card as the stage measured it."""

from dataclasses import replace
from pathlib import Path

from dualign.report.blocks import SideBySide, Table
from dualign.report.plots import loss_plot
from dualign.report.render import render_html, render_markdown
from dualign.report.report import Report
from dualign.report.retention import retention_findings, retention_sections
from dualign.report.runs import StageRun


def cell(accuracy: float, change: float = 0.0) -> dict:
    return {"accuracy": accuracy, "change": change, "change_ci": [change - 0.1, change + 0.1]}


def measurement(step: int, think: float, no_think: float, **keys: object) -> dict:
    tasks = {"sums": {"think": cell(think, think - 1), "no_think": cell(no_think, no_think - 0.8)}}
    return {"step": step, "tasks": tasks, "kl": {"think": step / 100}, **keys}


MEASUREMENTS = [
    measurement(0, 1.0, 0.8),
    measurement(50, 0.95, 0.8),
    measurement(100, 0.5, 0.8, broken=["sums, think: it fell"]),
]
ANSWERS = tuple(
    {"task": "", "step": step, "id": "0", "mode": mode, "prompt": "1+1?", "answer": f"at {step}"}
    for step in (0, 50, 100)
    for mode in ("think", "no_think")
)
METRICS = {
    "steps": 100,
    "published_step": 50,
    "stopped": "a bound of retain is broken at step 100",
    "retain": {"measurements": MEASUREMENTS},
}
STAGE = StageRun(
    path=Path("sft"), name="sft", kind="sft", record={"metrics": METRICS}, retained=ANSWERS
)


def test_the_sentences_are_of_the_published_step() -> None:
    assert [*retention_findings(STAGE)] == [
        "sft: published step 50 of 100; it stopped: a bound of retain is broken at step 100.",
        "sft: at step 50, against its start: sums think 95.0 %, (-5.0 [-15.0, +5.0]) points; "
        "sums no_think 80.0 %, (+0.0 [-10.0, +10.0]) points; KL to the start think 0.500.",
    ]
    plain = {"steps": 100, "retain": METRICS["retain"]}
    last = replace(STAGE, record={"metrics": plain})
    assert "at step 100" in "".join(retention_findings(last))
    assert not [*retention_findings(replace(STAGE, record={}))]


def test_the_section_has_each_step_and_the_answers_of_start_and_published_step() -> None:
    (section,) = retention_sections([replace(STAGE, record={}), STAGE])
    (table,) = (block for block in section.blocks if isinstance(block, Table))
    assert table.full_names == ("step", *("sums think", "sums no_think"), *(
        "KL to the start think", "KL to the start no_think"))  # fmt: skip
    assert table.rows[0] == ("0", "100.0", "80.0", "0.000", "-")
    assert table.rows[2][1] == "50.0 -50.0 [-60.0, -40.0]"
    shown = [block for block in section.blocks if isinstance(block, SideBySide)]
    assert [(block.title, block.think.answer) for block in shown] == [
        ("sft, step 0", "at 0"),
        ("sft, step 50", "at 50"),
    ]
    report = Report(title="t", facts=(), sections=(section,))
    assert "beyond the bound: sums, think: it fell" in render_html(report)
    assert "sums, think: it fell" in render_markdown(report, picture_folder="x")
    assert not [*retention_sections([replace(STAGE, record={})])]


def test_a_held_out_loss_of_retain_hides_no_training_loss() -> None:
    """A preference stage logs its loss for all rows; the loss of retain has modes."""
    log = [{"step": step, "loss": 1.0 / step} for step in (1, 2, 3)]
    beside = [*log, {"step": 3, "eval_retain/loss/think": 2.0}]
    assert loss_plot("a", "apo", log).svg == loss_plot("a", "apo", beside).svg


def test_the_table_has_raw_text_where_it_was_measured() -> None:
    measurements = [
        {"step": step, "tasks": {}, "loss": {"think": 1.0, "text": 2.5}} for step in (0, 9)
    ]
    stage = replace(STAGE, record={"metrics": {"retain": {"measurements": measurements}}})
    (section,) = retention_sections([stage])
    (table,) = (block for block in section.blocks if isinstance(block, Table))
    assert table.full_names[-1] == "held-out loss text"
    assert table.rows[-1] == ("9", "1.000", "-", "2.500")
