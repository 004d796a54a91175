"""What a recipe with tasks is refused for before its first stage starts."""

import pytest

from dualign.evaluation.config import EvalConfig, EvalStage
from dualign.generation.config import Endpoint
from dualign.judges.config import RubricConfig
from dualign.merging.sweep.config import SweepStage
from dualign.preference.pairs_config import PairsStage
from dualign.stages import stage_kind


@pytest.fixture
def task(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1 + 1", "answer": "two"}\n')
    (tmp_path / "task.yaml").write_text("name: t\nrows: rows.jsonl\nverifier: integer\n")
    return str(tmp_path / "task.yaml")


def eval_stage(*tasks, **keys):
    return EvalStage(name="eval", models=("m",), tasks=tasks, **keys)


def test_a_plan_of_tasks_that_a_stage_will_write_says_so(task):
    endpoint = Endpoint(url="http://127.0.0.1:9/v1", name="m")
    stage = EvalStage(name="eval", models=(endpoint,), tasks=("stage:data/a.yaml", task))
    assert stage.in_words() == "questions: known when stage data has run"


def test_an_answer_that_cant_be_read_is_told_by_every_kind_that_checks(task):
    judged = PairsStage(
        name="pairs", model="m", rejected_model="w", tasks=(task,), judge=RubricConfig(model="j")
    )
    stages = [
        ("tasks", "eval", eval_stage(task)),
        ("tasks", "pairs", PairsStage(name="pairs", model="m", tasks=(task,))),
        ("tasks", "pairs", judged),
        ("score.tasks", "sweep", SweepStage(name="s", merge={}, score=EvalConfig(tasks=(task,)))),
    ]
    for key, kind, stage in stages:
        ((found, message),) = stage_kind(kind).issues(stage)
        assert found == key
        assert "rows.jsonl:1: expected answer 'two' isn't a whole number" in message


def test_what_isnt_there_yet_or_isnt_checked_is_let_pass(task, tmp_path):
    strong = PairsStage(name="pairs", model="m", rejected_model="w", tasks=(task,))
    assert stage_kind("pairs").issues(strong) == []
    assert stage_kind("eval").issues(eval_stage("stage:data/task.yaml", task, rows=1)) == []
    (tmp_path / "run.json").write_text("{}")  # of the last run of a stage that makes the task anew
    assert stage_kind("eval").issues(eval_stage(task)) == []


@pytest.mark.parametrize("rows", [None, 1])
def test_a_task_that_no_stage_makes_is_missed_before_the_first_stage(task, rows):
    stage = eval_stage(
        "tasks/nope.yaml", "lmeval:x", task.replace("task.yaml", "gone.yaml"), rows=rows
    )
    messages = [message for _, message in stage_kind("eval").issues(stage)]
    assert len(messages) == 3
    assert "tasks/nope.yaml: no such task file" in messages[0]
    assert "no source 'lmeval'" in messages[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_temperature_that_is_none_is_refused(task, value):
    problems = dict(eval_stage(task, temperature=value).problems())
    assert "expected 0 or more" in problems["temperature"]
