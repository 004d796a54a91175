"""Evaluations at thinking budgets: one trace for all, what is counted, what is shown."""

import json
import math
from dataclasses import replace

import pytest

import dualign.evaluation.evaluate as evaluate
import dualign.generation.responders as responders
from dualign.cli.main import main
from dualign.evaluation.budget_table import budget_notes, budget_rows
from dualign.evaluation.budgets import whole_limits, with_budgets
from dualign.evaluation.config import EvalStage
from dualign.evaluation.requests import build_requests
from dualign.generation.config import Endpoint
from dualign.tasks.base import OwnSampling
from dualign.tasks.table import load_questions
from tests.evaluation.test_evaluate import samples_of, stage, without_modes

CLOSING = "\n</think>\n"  # as the tiny model has learnt it


def test_budgets_give_accuracy_and_tokens_from_one_trace(
    learnt, task_file, tmp_path, generated, capsys, caplog
):
    plain = evaluate.run(stage(learnt, tasks=[task_file]), tmp_path / "plain", seed=1)
    assert generated["prompts"] == 8
    # The traces have 11, 10, 12 and 12 tokens.
    budgets = (0, 3, 11, 300, "none")
    settings = {"budgets": budgets, "budget_closing": CLOSING, "max_new_tokens_no_think": 30}
    only = stage(learnt, tasks=[task_file], **settings)
    cells = evaluate.run(only, tmp_path / "cut", seed=1).metrics["tasks"]["sums"]
    assert generated["prompts"] == 8 + 8 + 4 + 4 + 2
    (warning,) = [r.getMessage() for r in caplog.records if "budget" in r.getMessage()]
    assert "no trace reaches a budget of 300, since max_new_tokens ends answers at 40" in warning
    lines = samples_of(tmp_path / "cut")
    whole = [line for line in lines if "budget" not in line]
    assert [line["generated"] for line in whole] == [
        line["generated"] for line in samples_of(tmp_path / "plain")
    ]
    assert [(line["budget"], line["think_tokens"]) for line in lines[8:]] == (
        [(0, 0)] * 4 + [(3, 3)] * 4 + [(11, 11)] * 2
    )
    assert all(line["closed"] and line["closed_by_budget"] for line in lines[8:])
    assert not any(line["cut_in_think"] or line["empty_think"] for line in lines[12:])
    think = cells["think"]
    assert {name: think[name] for name in ("accuracy", "n", "think_tokens")} == {
        name: plain.metrics["tasks"]["sums"]["think"][name]
        for name in ("accuracy", "n", "think_tokens")
    }
    assert "budgets" not in cells["no_think"]
    entries = think["budgets"]
    assert [entry["budget"] for entry in entries] == [0, 3, 11, 300, None]
    assert [entry["closed_by_budget"] for entry in entries] == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert [entry["think_tokens"] for entry in entries] == [0.0, 3.0, 10.75, 11.25, 11.25]
    assert [entry["accuracy"] for entry in entries][3:] == [1.0, 1.0]
    assert entries[3] == entries[4] | {"budget": 300}
    by_hand = [
        sum(line["correct"] for line in lines if line.get("budget") == b) / 4 for b in (0, 3)
    ]
    assert [entry["accuracy"] for entry in entries][:2] == by_hand
    assert entries[0]["against_none"] == pytest.approx(by_hand[0] - 1)
    shown = " ".join(capsys.readouterr().out.split())
    assert "Thinking budgets" in shown
    assert "tokens written for all budgets" in shown
    table = (tmp_path / "cut/table.md").read_text(encoding="utf-8")
    assert "## Thinking budgets" in table
    assert "| none | 100.0 [51, 100] |  |  | 11.2 |" in table
    assert "Thinking budgets" not in (tmp_path / "plain/table.md").read_text(encoding="utf-8")


def test_area_and_enough_follow_from_the_accuracies(learnt, task_file, tmp_path):
    only = stage(learnt, tasks=[task_file], budgets=(0, 3, 11), budget_closing=CLOSING)
    think = evaluate.run(only, tmp_path, seed=1).metrics["tasks"]["sums"]["think"]
    heights = [entry["accuracy"] for entry in think["budgets"]]
    places = [math.log2(1 + tokens) for tokens in (0, 3, 11, 40)]
    area = sum(
        (places[i + 1] - places[i]) * (heights[i] + heights[i + 1]) / 2 for i in range(3)
    ) / (places[3] - places[0])
    assert think["budget_area"] == pytest.approx(area)
    assert 0 < area < 1
    enough = next(e["budget"] for e in think["budgets"] if e["accuracy"] >= 0.95)
    assert think["budget_95"] == enough
    lines = samples_of(tmp_path)
    tokens = [
        line["answer_tokens"] + ("budget" not in line) * line["think_tokens"]
        for line in lines
        if line["mode"] == "think"
    ]
    assert think["budget_tokens"]["written"] == sum(tokens)
    assert think["budget_tokens"]["apart"] > sum(tokens)


def test_a_killed_evaluation_asks_for_the_rest_and_a_longer_list_for_what_is_new(
    learnt, task_file, tmp_path, generated
):
    whole, again = tmp_path / "whole", tmp_path / "again"
    three = stage(learnt, tasks=[task_file], budgets=(2, 5, "none"))
    evaluate.run(three, whole, seed=1)
    assert generated["prompts"] == 8 + 8
    again.mkdir()
    lines = (whole / "samples.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (again / "samples.jsonl").write_text("".join(lines[:11]), encoding="utf-8")
    evaluate.run(three, again, seed=1)
    assert generated["prompts"] == 16 + 5
    for name in ("samples.jsonl", "metrics.json"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()
    evaluate.run(stage(learnt, tasks=[task_file], budgets=(2, 4, 5)), again, seed=1)
    assert generated["prompts"] == 21 + 4


def test_a_model_without_modes_has_no_budgets(learnt, task_file, tmp_path, generated):
    base = without_modes(learnt, tmp_path / "base")
    only = stage(base, learnt, tasks=[task_file], budgets=(2,))
    metrics = evaluate.run(only, tmp_path / "out", seed=1).metrics
    cells = [entry["tasks"]["sums"]["think"] for entry in metrics["all"]]
    assert ["budgets" in cell for cell in cells] == [False, True]
    assert generated["prompts"] == 4 + 8 + 4
    assert {row[1] for row in budget_rows(metrics)} == {learnt.name}


def test_a_server_closes_traces_at_budgets(learnt_server, task_file, tmp_path):
    endpoint = Endpoint(url=learnt_server, thinking_budget_field="thinking_budget_tokens")
    only = EvalStage(
        name="eval",
        models=(endpoint,),
        tasks=(str(task_file),),
        max_new_tokens=40,
        budgets=(4, 200),
    )
    think = evaluate.run(only, tmp_path, seed=1).metrics["tasks"]["sums"]["think"]
    assert [entry["closed_by_budget"] for entry in think["budgets"]] == [1.0, 0.0, 0.0]
    assert len(samples_of(tmp_path)) == 8 + 4
    assert "16 requests" in only.in_words()  # four sums, in both modes and at two budgets


@pytest.mark.parametrize(
    ("options", "key", "words"),
    [
        ({"budgets": (-1,)}, "budgets.0", "expected 0 or more tokens, or none, found -1"),
        ({"budgets": (4, 4)}, "budgets", "names a budget twice"),
        ({"budgets": ("none",)}, "budgets", "none is measured anyway"),
        ({"budget_closing": "x"}, "budget_closing", "no effect without budgets"),
        (
            {"budgets": (4,), "models": ("http://127.0.0.1:1/v1",)},
            "models.0",
            "thinking_token_budget (vLLM)",
        ),
        (
            {
                "budgets": (4,),
                "models": (Endpoint(url="http://127.0.0.1:1/v1", thinking_budget_field="x"),),
                "budget_closing": "x",
            },
            "budget_closing",
            "in its own words",
        ),
        (
            {
                "budgets": (4,),
                "models": (
                    Endpoint(
                        url="http://127.0.0.1:1/v1",
                        thinking_budget_field="custom.most",
                        body={"custom": {"most": 9}},
                    ),
                ),
            },
            "models.0",
            "body sends custom.most with every request",
        ),
    ],
)
def test_what_can_not_be_is_said_before(options, key, words):
    config = EvalStage(**{"name": "eval", "models": ("x",), "tasks": ("t",)} | options)
    assert [message for name, message in config.problems() if name == key and words in message]


def test_the_command_takes_budgets(learnt, task_file, tmp_path, capsys):
    command = ["eval", str(learnt), "--task", str(task_file), "--out", str(tmp_path), "--rows", "1"]
    command += ["--max-new-tokens", "30", "--budgets"]
    assert main([*command, "0, x"]) == 2
    assert "--budgets: expected numbers of tokens and none" in capsys.readouterr().err
    assert main([*command, "0,4,none"]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    entries = metrics["tasks"]["sums"]["think"]["budgets"]
    assert [entry["budget"] for entry in entries] == [0, 4, None]
    (note,) = budget_notes(metrics)
    assert note.startswith("sums, learnt: ")


def test_several_answers_have_budgets_each(learnt, task_file, tmp_path):
    settings = {"samples": 2, "temperature": 1.0, "budgets": (3,)}
    think = evaluate.run(stage(learnt, tasks=[task_file], **settings), tmp_path, seed=1).metrics[
        "tasks"
    ]["sums"]["think"]
    lines = [line for line in samples_of(tmp_path) if line["mode"] == "think"]
    cut = {(line["id"], line["sample"]): line for line in lines if "budget" in line}
    whole = {(line["id"], line["sample"]): line for line in lines if "budget" not in line}
    assert len(whole) == 8 and cut
    for place, line in cut.items():
        assert whole[place]["generated"].startswith(line["generated"].split("\n</think>")[0])
    values = [cut.get(place, line)["correct"] for place, line in whole.items()]
    entry, none = think["budgets"]
    assert (entry["n"], none["n"]) == (4, 4)
    assert entry["accuracy"] == sum(values) / 8


def test_no_budget_stands_at_the_limit_that_a_problem_has_itself(learnt, task_file):
    """A harness's task may have a higher limit than the stage, and its curve ends there."""
    settings = {"backend": "transformers", "dtype": "auto", "batch_tokens": 900}
    responder = responders.open_responder(str(learnt), **settings, label="test")
    only = stage(learnt, tasks=[task_file], budgets=(4,))
    ((task, problems),) = load_questions(only.tasks)
    limits = (30, 90, 60, 30)  # the stage's is 40
    own = [
        replace(problem, sampling=OwnSampling(max_new_tokens=limit))
        for problem, limit in zip(problems, limits, strict=True)
    ]
    items = build_requests(responder, [(task, own)], only, name="m", seed=1).items
    assert whole_limits(items) == {}
    assert whole_limits(with_budgets(items, only)) == {"sums": 90}
