"""Long-context tasks in an evaluation: problems sized once, curves over lengths, and how far a model goes."""

import json
from dataclasses import replace

import pytest

import dualign.evaluation.evaluate as evaluate
from dualign.errors import EvaluationError
from dualign.evaluation.config import EvalStage
from dualign.evaluation.lengths import effective_text, length_columns, length_rows, with_lengths
from dualign.evaluation.requests import render_question
from dualign.evaluation.sizing import prompt_tokens, require_room, sized
from dualign.generation.config import Endpoint
from dualign.generation.responders import open_responder
from dualign.models.tokenizer import load_chat_tokenizer
from dualign.tasks.table import load_questions, load_tasks


def responder(model):
    return open_responder(
        str(model), backend="transformers", dtype="auto", batch_tokens=9000, label=""
    )


def cell(score):
    return {"accuracy": score, "accuracy_ci": [score - 0.1, score + 0.1], "n": 20}


def test_a_stage_asks_at_its_lengths_and_shows_the_curve(learnt, tmp_path, capsys):
    stage = EvalStage(
        name="eval",
        models=(str(learnt),),
        tasks=("long:needle@600,700*2",),
        max_new_tokens=6,
        batch_tokens=4000,
    )
    evaluate.run(stage, tmp_path, seed=1)
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    think, no_think = metrics["length_curves"]
    assert metrics["all"][0]["length_curves"] == [think, no_think]
    assert "lengths" not in metrics, "the report reads those of a pairs stage there"
    assert (think["language"], think["mode"], think["window"]) == ("en", "think", 512)
    assert [point["length"] for point in think["points"]] == [600, 700]
    assert [point["beyond"] for point in think["points"]] == [False, True], (
        "472 + 6 < 512 < 572 + 6"
    )
    assert all(point["beyond"] for point in no_think["points"]), "its limit is the 128 of an answer"
    assert think["effective"] is None
    assert "Effective" in capsys.readouterr().out
    assert "## Lengths" in (tmp_path / "table.md").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").open(encoding="utf-8")]
    assert {line["score"] for line in lines if line["finished"]} <= {0.0}
    tokenizer = load_chat_tokenizer(str(learnt))
    for line in lines:
        tokens = len(tokenizer(line["rendered"], add_special_tokens=False)["input_ids"])
        assert tokens <= line["prompt_tokens"] <= line["length"] - 128
        assert 0 <= line["depth"] <= 1


def test_the_longer_mode_counts_and_one_text_is_asked_in_both(learnt):
    model, tokenizer = responder(learnt), load_chat_tokenizer(str(learnt))
    ((_, problems),) = sized(model, load_questions(["long:needle@900*2"]), None)
    for problem in problems:
        tokens = [
            len(tokenizer(render_question(model, problem, mode, None).text)["input_ids"])
            for mode in ("think", "no_think")
        ]
        assert max(tokens) == problem.extra["prompt_tokens"]
        assert min(tokens) < max(tokens), "the modes' prompts aren't equally long"
    assert prompt_tokens(model, None)("Hi") < problems[0].extra["prompt_tokens"]


def test_a_problem_without_its_length_is_never_asked(learnt):
    ((_, problems),) = load_questions(["long:needle@900*1"])
    with pytest.raises(EvaluationError, match="problem 0 has a length in tokens, which only"):
        render_question(responder(learnt), problems[0], "think", None)


def test_an_endpoint_is_asked_by_a_guess_of_its_tokens():
    endpoint = Endpoint(url="http://127.0.0.1:9/v1", name="m")
    model = open_responder(
        endpoint, backend="transformers", dtype="auto", batch_tokens=9000, label=""
    )
    # 32 for the template; remember|ed, 12|34|5 and the full stop
    assert prompt_tokens(model, None)("remembered 12345.") == 32 + 2 + 3 + 1
    ((_, problems),) = sized(model, load_questions(["long:multi_key_uuid@4k*1"]), None)
    assert 3750 < problems[0].extra["prompt_tokens"] <= 3968


def test_vllm_is_never_asked_beyond_the_positions(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "max_position_embeddings": 4096}'
    )
    tasks = load_questions(["long:needle@1k,4k*1"])
    stage = EvalStage(name="e", models=(str(tmp_path),), tasks=("x",), backend="vllm")
    with pytest.raises(EvaluationError, match="@4k/en: prompt and answer have up to 4,480 tokens"):
        require_room(stage, tasks)
    require_room(replace(stage, max_new_tokens=128), tasks)
    require_room(replace(stage, backend="transformers"), tasks)


def test_a_point_is_the_mean_of_the_forms_and_the_effective_length_ends_below_the_bound(tmp_path):
    tasks = load_tasks(["long:needle,tracking@1k,2k,4k"])
    scores = {"1k": (1.0, 0.8), "2k": (0.9, 0.82), "4k": (0.8, 0.9)}
    cells = {
        f"long:{form}@{length}/en": {"think": cell(score), "no_think": cell(1.0)}
        for length, pair in scores.items()
        for form, score in zip(("needle", "tracking"), pair, strict=True)
    }
    entry = {"model": "m", "mode_switch": True, "tasks": cells}
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "max_position_embeddings": 4096}'
    )
    stage = EvalStage(name="e", models=(str(tmp_path),), tasks=("x",))
    assert with_lengths({"all": [entry]}, (), stage) == {"all": [entry]}
    metrics = with_lengths({"all": [entry]}, tasks, stage)
    think, no_think = metrics["length_curves"]
    assert [point["score"] for point in think["points"]] == pytest.approx([0.9, 0.86, 0.85])
    assert think["points"][0]["forms"] == {"needle": 1.0, "tracking": 0.8}
    assert think["points"][0]["ci"] == pytest.approx([0.829, 0.971], abs=1e-3)  # 0.1 / sqrt(2)
    assert [point["beyond"] for point in think["points"]] == [False, False, True]
    assert (think["effective"], effective_text(think)) == (2048, "2k")
    assert (no_think["effective"], effective_text(no_think)) == (4096, "≥ 4k")
    curves = [("m", think)]
    assert length_columns(curves) == ["language", "model", "mode", "1k", "2k", "4k", "effective"]
    assert next(length_rows(curves)) == [
        "en", "m", "think", "90.0 [83, 97]", "86.0 [79, 93]", "85.0 [78, 92] *", "2k",
    ]  # fmt: skip
