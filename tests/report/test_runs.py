"""Reading run directories."""

import json
import math
from pathlib import Path

import pytest

from dualign.errors import CheckpointError
from dualign.report.runs import evaluations_of, is_preference, is_training, read_stage, series

from .conftest import Record, cell, write_evaluation, write_rows, write_stage


def test_stage_without_run_json_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"sft/run\.json isn't there.*run the pipeline to its end"
    ):
        read_stage(tmp_path / "sft")


def test_damaged_line_of_the_log_is_named(tmp_path: Path) -> None:
    path = write_stage(tmp_path, "sft", "sft")
    (path / "log.jsonl").write_text('{"step": 1}\n{"step": 2, "lo', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"log\.jsonl:2 isn't JSON"):
        read_stage(path)


def test_run_json_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"schema": 1, "name": "sft"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="the key 'kind' is missing"):
        read_stage(tmp_path)


def test_line_separators_within_a_sample_do_not_end_its_line(tmp_path: Path) -> None:
    path = write_evaluation(tmp_path, "test", [{"model": "m", "tasks": {}}])
    (path / "samples.jsonl").write_text('{"answer": "a\u2028b\u0085c"}\n', encoding="utf-8")
    assert read_stage(path).samples == ({"answer": "a\u2028b\u0085c"},)


def test_series_keeps_the_later_of_a_repeated_step_and_leaves_out_what_is_no_number() -> None:
    log: list[Record] = [
        {"step": 2, "loss": 3.0},
        {"step": 1, "loss": 9.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": math.nan},
        {"step": 4, "loss": None},
        {"step": 5, "eval_loss": 1.0},
        {"loss": 7.0},
    ]
    assert series(log, "loss") == ((1, 9.0), (2, 2.0))


def test_kinds_of_stages_are_told_from_what_they_logged(pipeline: list[Path]) -> None:
    stages = [read_stage(path) for path in pipeline]
    assert [stage.name for stage in stages if is_training(stage)] == ["sft", "apo"]
    assert [stage.name for stage in stages if is_preference(stage)] == ["apo"]


def test_models_come_in_order_with_their_own_samples(pipeline: list[Path]) -> None:
    models = evaluations_of([read_stage(path) for path in pipeline])
    assert [model.scores.model for model in models] == ["base", "sft", "apo", "merged"]
    assert [len(model.samples) for model in models] == [720] * 4
    assert {sample["model"] for sample in models[1].samples} == {"sft"}


def _one(model: str, task: str, right: int) -> dict[str, object]:
    return {"model": model, "tasks": {task: {"think": cell(right, 10)}}}


def test_tasks_of_a_model_are_joined_over_stages_and_a_repeated_task_stays_apart(
    tmp_path: Path,
) -> None:
    paths = [
        write_evaluation(tmp_path, "first", [_one("sft", "sums", 1)], [{"task": "sums", "id": 1}]),
        write_evaluation(tmp_path, "second", [_one("sft", "cups", 2)], [{"task": "cups", "id": 2}]),
        write_evaluation(tmp_path, "third", [_one("sft", "sums", 3)], [{"task": "sums", "id": 3}]),
    ]
    models = evaluations_of([read_stage(path) for path in paths])
    assert [model.scores.model for model in models] == ["sft", "sft (third)"]
    assert list(models[0].scores.tasks) == ["sums", "cups"]
    assert [[sample["id"] for sample in model.samples] for model in models] == [[1, 2], [3]]


def test_samples_without_a_model_belong_to_the_only_one(tmp_path: Path) -> None:
    path = write_evaluation(tmp_path, "test", [_one("sft", "sums", 1)])
    write_rows(path / "samples.jsonl", [{"task": "sums", "id": 1}])
    assert len(evaluations_of([read_stage(path)])[0].samples) == 1
