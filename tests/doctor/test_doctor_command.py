"""`dualign doctor`: what it takes for what, what it prints, how it exits."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualign.cli.main import main
from dualign.data.config import DataConfig, SourceConfig
from dualign.data.prepare import DataRequest, prepare_sft
from dualign.doctor.findings import Findings
from dualign.doctor.inputs import input_kind
from dualign.doctor.survey import SurveyInput, survey
from dualign.errors import ConfigError
from tests.doctor.conftest import write
from tests.doctor.defective_rows import (
    end_of_turn_in_answer,
    no_think_row,
    think_row,
    unclosed_block,
)
from tests.doctor.defective_templates import of_another_family

ROWS = [think_row(1), no_think_row(2), think_row(3), no_think_row(4)]


def test_json_has_every_finding_with_its_row_and_the_account(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(tmp_path, "rows", [*ROWS, unclosed_block({}), end_of_turn_in_answer({})])
    assert main(["doctor", str(rows), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["rows"] == {
        "in": 6,
        "kept": 4,
        "dropped": {"control_token": 1, "unclosed_think": 1},
    }
    found = [
        (finding["code"], finding["severity"], finding["source"], finding["row"])
        for finding in said["findings"]
    ]
    assert found == [
        ("control_token", "error", "rows", 5),
        ("unclosed_think", "error", "rows", 4),
    ]
    assert all(
        finding["message"] and finding["means"] and finding["fix"] for finding in said["findings"]
    )


def test_clean_rows_exit_with_0_and_a_line_that_adds_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(write(tmp_path, "rows", ROWS))]) == 0
    think, no_think, printed = capsys.readouterr().out.splitlines()
    assert think.startswith("think: 2 rows, ") and no_think.startswith("no_think: 2 rows, ")
    assert printed == "4 rows in, 4 kept, 0 dropped. 0 errors, 0 warnings, 0 notes."


def test_the_table_says_what_it_means_and_how_to_mend_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(tmp_path, "rows", [*ROWS, *[unclosed_block({})] * 5])
    assert main(["doctor", str(rows)]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "error unclosed_think rows 5 rows (55.6%)" in printed
    assert printed.count("row 4:") == 1 and "also rows 5, 6, 7, 8 means:" in printed
    assert "means: The model learns never to reach an answer." in printed
    assert "fix: Remove the row" in printed
    assert "9 rows in, 4 kept, 5 dropped (unclosed_think 5)." in printed


def test_a_file_of_one_fault_shows_it_first_once_and_with_its_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapeless = [{f"column_{number}": "many words " * 90 for number in range(30)}] * 40
    rows = write(tmp_path, "rows", [end_of_turn_in_answer({}), *shapeless, *ROWS])
    assert main(["doctor", str(rows)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "error unknown_shape  rows  40 rows (88.9%)"
    screen = " ".join(" ".join(lines[:14]).split())
    assert screen.count("row 1: ") == 1 and "also rows 2, 3, 4, 5, 6, 7, 8, 9, 10, ..." in screen
    assert "fix: Say with columns of the source which" in screen


def test_a_row_that_stops_a_command_comes_with_its_fix_and_what_counts_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shrunk: Path
) -> None:
    write(tmp_path, "rows", [*ROWS, *[unclosed_block({})] * 5])
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: r\noutput_dir: out\nstages:\n  - name: sft\n    kind: sft\n    model: {shrunk}\n"
        "    data: {sources: [{path: rows.jsonl}]}\n"
    )
    for command in ("plan", "inspect"):
        assert main([command, str(recipe)]) == 2
        error = capsys.readouterr().err.partition("error: ")[2].splitlines()
        assert error[0].startswith("rows, row 4: <think> without </think>") and len(error) == 3
        assert error[1] == "fix: Remove the row, or close the block and add the answer."
        assert error[2].startswith(f"`dualign doctor {recipe}` counts the rows with this")


@pytest.mark.parametrize(
    "arguments",
    [
        ["no/such/file"],
        ["rows.jsonl"],
        ["{rows}", "sft.model=x"],
        ["{rows}", "--template", "dualing"],
    ],
    ids=" ".join,
)
def test_bad_usage_exits_with_2(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(tmp_path, "rows", ROWS)
    assert main(["doctor", *(argument.format(rows=rows) for argument in arguments)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_template_of_ones_own_that_is_broken_is_a_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.jinja").write_text("{% if %}", encoding="utf-8")
    rows = write(tmp_path, "rows", ROWS)
    arguments = ["doctor", str(rows), "--template", str(tmp_path / "mine.jinja"), "--json"]
    assert main(arguments) == 1
    said = json.loads(capsys.readouterr().out)
    assert [finding["code"] for finding in said["findings"]] == ["template_unusable"]


def test_a_file_that_cant_be_read_is_a_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"messages": [}\n', encoding="utf-8")
    assert main(["doctor", str(tmp_path / "rows.jsonl"), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert [finding["code"] for finding in said["findings"]] == ["source_unreadable"]
    assert said["rows"] == {"in": 0, "kept": 0, "dropped": {}}


def test_targets_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "rows").mkdir()
    told = {
        "quickstart": "recipe",
        "mine.yaml": "recipe",
        str(tmp_path / "model"): "model",
        "embedded:smollm2-135m-instruct": "model",
        str(tmp_path / "rows"): "data",
        "traces/*.jsonl": "data",
        "owner/name": "data",
    }
    assert {name: input_kind(name, recipes=["quickstart"]) for name in told} == told
    with pytest.raises(ConfigError, match="no such file or folder"):
        input_kind("gone", recipes=["quickstart"])


@pytest.mark.parametrize(
    "how",
    [
        {"weight": 0.8},
        {"too_long": "cut_history"},
        {"too_long": "cut_end", "supervise": "answers"},
        {"thinking_budget": 2, "supervise": "last"},
        {"template": "qwen3"},
    ],
    ids=str,
)
def test_the_account_is_that_of_training_to_the_last_token(
    how: dict[str, Any], formats: Callable[[str], Any], tmp_path: Path
) -> None:
    rows = copy.deepcopy([*ROWS, unclosed_block({}), no_think_row(5) | {"mode": "think"}])
    rows[0]["messages"] = [*think_row(8)["messages"], *rows[0]["messages"]]
    rows[1]["messages"][1]["content"] = "two " * 600
    path = str(write(tmp_path, "rows", rows))
    own = {key: how[key] for key in ("weight", "thinking_budget") if key in how}
    shared = {key: how[key] for key in ("too_long", "supervise") if key in how}
    source = SourceConfig(path=path, **own)
    data = DataConfig(
        sources=(source,), max_tokens=80, conflicts="drop", validation_rows=1, **shared
    )
    (tmp_path / "qwen3.jinja").write_text(of_another_family("qwen3"), encoding="utf-8")
    name = str(tmp_path / "qwen3.jinja") if "template" in how else "dualign"
    tokenizer, template = formats(name)
    subject = SurveyInput(data=data, tokenizer=tokenizer, template=template, seed=7)
    told = survey(subject, Findings())
    assert told == prepare_sft(DataRequest(data, tokenizer, template, seed=7)).rows
    assert told["in"] == 6 and told["kept"] >= 2


def test_a_fault_is_as_bad_as_what_the_recipe_does_about_it(
    formats: Callable[[str], Any], tmp_path: Path
) -> None:
    path = str(write(tmp_path, "rows", [*ROWS, think_row(5) | {"mode": "no_think"}]))
    tokenizer, template = formats("dualign")
    told = {}
    for action in ("error", "drop", "strip_thinking"):
        source = SourceConfig(path=path, on_fault={"no_think_with_trace": action})
        data, findings = DataConfig(sources=(source,)), Findings()
        survey(SurveyInput(data=data, tokenizer=tokenizer, template=template), findings)
        told[action] = [(finding.code, finding.severity, finding.row) for finding in findings.all()]
    assert told == {
        "error": [("no_think_with_trace", "error", 4)],
        "drop": [("no_think_with_trace", "warning", 4)],
        "strip_thinking": [("repaired", "info", 4)],
    }
