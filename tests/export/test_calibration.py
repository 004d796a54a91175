"""Rows that a quantizer reads and questions that are asked, from what the run of a model says."""

import json
import shutil
from pathlib import Path

import pytest

from dualign.export.calibration import calibration
from dualign.export.questions import questions_for
from dualign.models.tokenizer import load_chat_tokenizer


def stage(folder: Path, kind: str, parents: tuple[str, ...], config: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    record = {"kind": kind, "parents": dict.fromkeys(parents, "x"), "seed": 0, "config": config}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def run_of(learnt: Path, runs: Path, *, no_think: int) -> str:
    """data -> sft -> merged, with 24 think rows; the merged model's folder."""
    rows = [
        {"mode": mode, "messages": [{"role": "user", "content": f"{i} + 1?"}, answer(mode, i)]}
        for mode, count in (("think", 24), ("no_think", no_think))
        for i in range(count)
    ]
    stage(runs / "data", "data", (), {})
    (runs / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": "stage:data/rows.jsonl", "mode": "row"}
    data = {"sources": [source], "validation_rows": 4, "max_tokens": 256}
    stage(runs / "sft", "sft", ("data",), {"data": data})
    shutil.copytree(learnt, runs / "merged")
    return str(stage(runs / "merged", "merge", ("sft",), {}))


def answer(mode: str, i: int) -> dict[str, str]:
    message = {"role": "assistant", "content": str(i + 1)}
    return message | ({"reasoning_content": f"{i} and 1"} if mode == "think" else {})


def test_rows_of_the_sft_stage_are_drawn_in_the_shares_of_training(learnt, tmp_path):
    model = run_of(learnt, tmp_path, no_think=8)
    read = calibration(model, None, rows=7)
    modes = read.record()["modes"]
    assert sum(of_mode["available"] for of_mode in modes.values()) == 24 + 8 - 4  # held out
    for of_mode in modes.values():
        assert abs(of_mode["rows"] - 7 * of_mode["available"] / 28) < 1
        assert of_mode["tokens"] > of_mode["rows"]
    assert sum(of_mode["rows"] for of_mode in modes.values()) == len(read.rows) == 7
    tokenizer = load_chat_tokenizer(model)
    for row in read.rows:
        text = tokenizer.decode(row.ids)
        assert (" and 1\n</think>" in text) is (row.mode == "think")
    assert len({row.ids for row in read.rows}) == 7
    assert calibration(model, None, rows=7, seed=1).rows != read.rows


def test_a_mode_with_few_rows_keeps_one(learnt, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [
        {"mode": mode, "messages": [{"role": "user", "content": f"{i} + 1?"}, answer(mode, i)]}
        for mode, count in (("think", 30), ("no_think", 1))
        for i in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    modes = calibration(str(learnt), str(file), rows=4).record()["modes"]
    assert {mode: of_mode["rows"] for mode, of_mode in modes.items()} == {"think": 3, "no_think": 1}


def test_long_rows_of_a_file_are_cut_and_not_left_out(learnt, tmp_path):
    file = tmp_path / "rows.jsonl"
    trace = {**answer("think", 1), "reasoning_content": "1 and 1\n" * 700}
    rows = [
        {"mode": mode, "messages": [{"role": "user", "content": "1 + 1?"}, reply]}
        for mode, reply in (("think", trace), ("no_think", answer("no_think", 1)))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokens = {row.mode: len(row.ids) for row in calibration(str(learnt), str(file), rows=2).rows}
    assert tokens["think"] == 2048 and 5 < tokens["no_think"] < 200


def test_a_mode_without_held_out_rows_is_asked_plain_questions(learnt, tmp_path):
    model = run_of(learnt, tmp_path, no_think=0)
    tokenizer = load_chat_tokenizer(model)
    questions, _ = questions_for(model, tokenizer, [], rows=2)
    assert [mode for mode, _ in questions.prompts] == ["think"] * 2 + ["no_think"] * 3
    assert questions.prompts[0][1].count(" + 1?") == 1
    assert (
        questions.origin == "2 held-out rows of stage sft, and 3 plain questions in no_think mode"
    )


@pytest.mark.parametrize("asked", ["merged", "sft"])
def test_the_tasks_of_the_models_own_evaluation_come_first(asked, learnt, task_file, tmp_path):
    model = run_of(learnt, tmp_path, no_think=8)
    config = {"tasks": [str(task_file)], "max_new_tokens": 70}
    stage(tmp_path / "eval", "eval", (asked,), config)
    questions, limits = questions_for(model, load_chat_tokenizer(model), [], rows=2)
    assert bool(questions.tasks) is (asked == "merged")
    assert limits.max_new_tokens == (70 if asked == "merged" else 512)
    assert bool(questions.prompts) is not bool(questions.tasks)
