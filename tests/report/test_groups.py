"""Many tasks: rows by group, means of groups, and each model against the first."""

import json
from pathlib import Path

import pytest

from dualign.report.blocks import Gallery, Section, Table
from dualign.report.evaluation import evaluation_sections
from dualign.report.runs import StageRun, evaluations_of, read_stage

from .conftest import Record, cell, write_evaluation, write_stage

HARNESS = ("gsm8k", "ifeval", "mmlu", "gpqa")
LONG = ("needle@1k", "needle@4k")
FILES = ("sums", "cups")
SOURCES = (
    *(f"lm_eval:{name}" for name in HARNESS),
    *(f"long:{name}" for name in LONG),
    *(f"/tasks/{name}.jsonl" for name in FILES),
)
RIGHT = {"base": (20, 20), "sft": (40, 30), "apo": (60, 30)}


def _stages(folder: Path, suite: str | None = None) -> list[StageRun]:
    names = (*HARNESS, *LONG, *FILES)
    models: list[Record] = []
    for model, (think, no_think) in RIGHT.items():
        cells = {"think": cell(think, 100), "no_think": cell(no_think, 100)}
        models.append({"model": model, "tasks": dict.fromkeys(names, cells)})
    paths = [
        write_stage(folder, "sft", "sft"),
        write_stage(folder, "apo", "preference", parents=("sft",)),
        write_evaluation(folder, "test", models),
    ]
    record = json.loads((paths[-1] / "run.json").read_text())
    record["data"] = [{"source": source, "rows": 100} for source in SOURCES]
    record["config"] |= {"suite": suite} if suite else {}
    (paths[-1] / "run.json").write_text(json.dumps(record))
    return [read_stage(path) for path in paths]


def _section(stages: list[StageRun], name: str) -> Section:
    sections = evaluation_sections(stages, evaluations_of(stages))
    return next(section for section in sections if section.name == name)


def _tables(section: Section) -> dict[str, Table]:
    return {block.caption: block for block in section.blocks if isinstance(block, Table)}


@pytest.fixture
def stages(tmp_path: Path) -> list[StageRun]:
    return _stages(tmp_path)


def test_many_tasks_are_rows_by_what_they_were_read_from(stages: list[StageRun]) -> None:
    section = _section(stages, "accuracy")
    tables = _tables(section)
    assert list(tables) == ["lm-evaluation-harness", "Long context", "Task files"]
    table = tables["Long context"]
    assert table.columns == ("task", "mode", "base", "sft", "apo")
    assert [row[0] for row in table.rows[::3]] == [
        "needle@1k (n = 100)", "needle@4k (n = 100)", "mean of 2",
    ]  # fmt: skip
    assert [row[1] for row in table.rows[:3]] == ["think", "no_think", "gain"]
    assert table.rows[0][2:] == ("20.0 [13, 29]", "40.0 [31, 50]", "60.0 [50, 69]")
    # Two independent tasks: the mean's interval is narrower by the root of two.
    assert table.rows[6][4] == "60.0 [53, 66]"
    assert table.rows[8][4].startswith("+30.0 [")
    (gallery,) = (block for block in section.blocks if isinstance(block, Gallery))
    assert len(gallery.pictures) == 3


def test_tasks_of_a_suite_are_a_group(tmp_path: Path) -> None:
    tables = _tables(_section(_stages(tmp_path, suite="quick"), "accuracy"))
    assert list(tables) == [""]  # the only one needs no title
    assert len(tables[""].rows) == 3 * (8 + 1)


def test_few_tasks_of_two_kinds_keep_a_column_each(tmp_path: Path) -> None:
    cells = {"think": cell(1, 2), "no_think": cell(1, 2)}
    path = write_evaluation(tmp_path, "test", [{"model": "m", "tasks": {"a": cells, "b": cells}}])
    record = json.loads((path / "run.json").read_text())
    record["data"] = [{"source": "lm_eval:a"}, {"source": "/b.jsonl"}]
    (path / "run.json").write_text(json.dumps(record))
    table, _ = (b for b in _section([read_stage(path)], "accuracy").blocks if isinstance(b, Table))
    assert table.groups == (("", 1), ("a (n = 2)", 3), ("b (n = 2)", 3))


def test_each_model_is_set_against_the_first(stages: list[StageRun]) -> None:
    tables = _tables(_section(stages, "base"))
    table = tables["Task files"]
    assert table.columns == ("task", "mode", "sft", "apo")
    assert [row[:2] for row in table.rows] == [
        *((task, mode) for task in FILES for mode in ("think", "no_think")),
        ("mean of 2", "think"),
        ("mean of 2", "no_think"),
    ]
    assert table.rows[0][3].startswith("+40.0 [") and table.rows[4][3].startswith("+40.0 [")


def test_two_models_need_no_second_table_of_their_change(tmp_path: Path) -> None:
    models = [
        {"model": model, "tasks": {"sums": {"think": cell(n, 100)}}}
        for model, n in (("base", 10), ("sft", 20))
    ]
    stages = [read_stage(write_evaluation(tmp_path, "test", models))]
    names = [section.name for section in evaluation_sections(stages, evaluations_of(stages))]
    assert "steps" in names and "base" not in names


def test_a_sentence_names_the_largest_changes_and_counts_the_rest(stages: list[StageRun]) -> None:
    (bullets,) = _section(stages, "findings").blocks
    first = bullets.items[0]  # type: ignore[union-attr]
    assert first.startswith("apo: thinking adds points on gsm8k +30.0 [")
    assert first.count("+30.0") == 6 and first.endswith(" and 2 more.")


def test_format_of_many_tasks_is_that_of_the_last_model(stages: list[StageRun]) -> None:
    (table,) = _tables(_section(stages, "format")).values()
    assert {row[1] for row in table.rows} == {"apo"} and len(table.rows) == 2 * 8


def test_metrics_of_a_harness_are_shown_by_its_names(tmp_path: Path) -> None:
    metrics = {"exact_match,strict-match": {"value": 0.5, "ci": [0.25, 0.75]}, "bpb": {"value": 2}}
    tasks = {"gsm8k": {"think": {**cell(1, 2), "metrics": metrics}, "no_think": cell(1, 2)}}
    models = [
        {"model": "base", "tasks": {"gsm8k": {"think": cell(1, 2)}}},
        {"model": "sft", "tasks": tasks},
    ]
    path = write_evaluation(tmp_path, "test", models)
    record = json.loads((path / "run.json").read_text())
    record["data"] = [{"source": "lm_eval:gsm8k", "harness": "lm-eval", "version": "0.4.13"}]
    (path / "run.json").write_text(json.dumps(record))
    section = _section([read_stage(path)], "harness")
    (table,) = _tables(section).values()
    assert table.rows == (
        ("gsm8k", "exact_match,strict-match", "think", "-", "0.5000 [0.250, 0.750]"),
        ("gsm8k", "bpb", "think", "-", "2.0000"),
    )
    assert "Of lm-eval 0.4.13." in section.blocks[0].text  # type: ignore[union-attr]


def test_languages_of_traces_and_answers_are_shown(tmp_path: Path) -> None:
    counts = {"same": 9, "other": 1, "unknown": 2}
    think = {**cell(1, 2), "languages": {"trace": counts, "answer": {**counts, "unknown": 0}}}
    model = {"model": "sft", "tasks": {"words-de": {"think": think, "no_think": cell(1, 2)}}}
    path = write_evaluation(tmp_path, "test", [model])
    (table,) = _tables(_section([read_stage(path)], "languages")).values()
    assert [row[:3] + row[4:] for row in table.rows] == [
        ("words-de", "sft", "think", "90.0 (+2)", "90.0")
    ]


def test_a_suite_comes_first_beside_what_was_published(tmp_path: Path) -> None:
    cells = {"think": cell(1, 2), "no_think": cell(1, 2)}
    path = write_evaluation(tmp_path, "test", [{"model": "m", "tasks": {"aime25": cells}}])
    metrics = json.loads((path / "metrics.json").read_text())
    published = {"name": "AIME", "tasks": ["aime25"], "published": {"think": 36.7}}
    metrics["suite"] = {"name": "tiny", "benchmarks": [published]}
    (path / "metrics.json").write_text(json.dumps(metrics))
    (table,) = _tables(_section([read_stage(path)], "suite-test")).values()
    assert table.rows[0][:2] == ("AIME", "m") and "36.7" in table.rows[0]
