"""Traces for rows that have none: by a teacher whose answers are known, and by a model that has learnt them."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dualign.cli.main import main
from dualign.data.config import SourceConfig
from dualign.data.conversation import Conversation
from dualign.data.rows.sources import to_conversation
from dualign.errors import DataError
from dualign.sft.questions import HINT, as_problem, trace_questions
from dualign.sft.traces import run
from dualign.sft.tries import think_row
from dualign.verifiers.regex import RegexVerifier
from tests.chat_model import LEARNT
from tests.generation.servers import Proxy
from tests.sft.sums import LINES, SUMS, Teacher, recipe, stage, traces_of, write, written


@pytest.fixture
def teacher() -> Iterator[Proxy]:
    """It begins its script anew with each test."""
    with Proxy(Teacher()).running() as proxy:
        yield proxy


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("rows") / "sums.jsonl", LINES)


def read_back(row: dict[str, Any]) -> Conversation:
    return to_conversation(row, source=SourceConfig(path="traces.jsonl"), index=0)


def test_right_traces_become_think_rows_and_the_others_stay_no_think_rows(
    teacher: Proxy, rows: Path, tmp_path: Path
) -> None:
    outcome = run(stage(teacher.address, rows, tries=6), tmp_path, seed=1)
    assert traces_of(tmp_path) == ["so it is 3", "so 9", "so 4"]
    *thought, last = written(tmp_path)
    for row, right in zip(thought, SUMS.values(), strict=False):
        assert read_back(row).mode == "think"
        assert row["messages"][-1]["content"] == f"It is {right}."
    assert (last["id"], read_back(last).mode) == ("q3", "no_think")
    assert last["messages"][-1] == {"role": "assistant", "content": "It is 8."}
    assert last["provenance"]["without_trace"] == "no_right_answer"
    assert last["provenance"]["tries"] == 6
    metrics = outcome.metrics
    assert (metrics["think_rows"], metrics["no_think_rows"]) == (3, 1)
    assert metrics["without_trace"] == {"no_right_answer": 1}
    assert (metrics["tries"], metrics["rejected"]) == (1 + 1 + 2 + 6, {"no_right_answer": 1 + 6})
    assert len({asked.body["seed"] for asked in teacher.asked}) == len(teacher.asked) == 10
    assert outcome.rows["in"] == outcome.rows["kept"] == 4
    assert {(e["mode"], e["kept"]) for e in outcome.rows["by"]} == {("think", 3), ("no_think", 1)}


def test_a_row_says_who_thought_about_it_and_how(
    learnt: Path, teacher: Proxy, rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir(), (tmp_path / "there").mkdir()
    run(stage(str(learnt), rows, temperature=0.0, tries=1), tmp_path / "here", seed=1)
    assert traces_of(tmp_path / "here") == [thought for thought, *_ in LEARNT.values()]
    provenance = written(tmp_path / "here")[0]["provenance"]
    assert (provenance["model"], len(provenance["sha256"])) == ("learnt", 64)
    assert (provenance["source"], provenance["row"]) == ("sums", 0)
    assert provenance["try"] == provenance["tries"] == provenance["right"] == 1
    assert provenance["trace_tokens"] == len("one and two")
    assert provenance["temperature"] == 0.0 and provenance["answer_first"] is False
    assert str(learnt.parent) not in (tmp_path / "here" / "traces.jsonl").read_text()
    run(stage(teacher.address, rows), tmp_path / "there", seed=1)
    provenance = written(tmp_path / "there")[2]["provenance"]
    assert (provenance["model"], provenance["endpoint"]) == ("teacher", teacher.address)
    assert [provenance[key] for key in ("try", "tries", "right")] == [2, 2, 1]


def test_of_several_right_traces_the_shortest_or_all_are_taken(
    teacher: Proxy, rows: Path, tmp_path: Path
) -> None:
    for choose in ("shortest", "all"):
        (tmp_path / choose).mkdir()
        run(stage(teacher.address, rows, tries=4, choose=choose), tmp_path / choose, seed=1)
    every = ["so it is 3", "so 3", "so 9", "so it is 9", "so 4"]
    assert traces_of(tmp_path / "all") == every, "what was written twice comes once"
    assert traces_of(tmp_path / "shortest") == ["so 3", "so 9", "so 4"]
    first = written(tmp_path / "shortest")[0]["provenance"]
    assert [first[key] for key in ("try", "tries", "right")] == [2, 4, 4]


def test_a_trace_out_of_bounds_is_rejected_by_its_length(
    learnt: Path, rows: Path, tmp_path: Path
) -> None:
    """The traces have 11, 10, 12 and 12 tokens."""
    sure = {"temperature": 0.0, "tries": 1}
    for name, bound, kept, reason in (
        ("low", {"min_trace_tokens": 12}, ["two twice is", "seven up one"], "too_short"),
        ("high", {"max_trace_tokens": 11}, ["one and two", "four, five"], "too_long"),
    ):
        (tmp_path / name).mkdir()
        metrics = run(stage(str(learnt), rows, **sure, **bound), tmp_path / name, seed=1).metrics
        assert traces_of(tmp_path / name) == kept
        assert metrics["rejected"] == metrics["without_trace"] == {reason: 2}
        assert metrics["trace_tokens"]["max"] == max(map(len, kept))


def test_the_models_answer_both_modes_and_no_row_without_a_trace(
    teacher: Proxy, rows: Path, tmp_path: Path
) -> None:
    keys = {"answer": "model", "both_modes": True, "without_trace": "drop"}
    outcome = run(stage(teacher.address, rows, **keys), tmp_path, seed=1)
    made = written(tmp_path)
    assert [row["mode"] for row in made] == ["think", "no_think"] * 3
    assert [row["messages"][-1]["content"] for row in made[:2]] == ["3", "It is 3."]
    assert outcome.rows["dropped"] == {"no_right_answer": 1}
    assert outcome.rows["in"] == 4 == outcome.rows["kept"] + 1


def test_a_cut_off_run_goes_on_without_asking_twice(
    learnt: Path, rows: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    sure = stage(str(learnt), rows, temperature=0.0, tries=1)
    run(sure, whole, seed=1)
    lines = (whole / "generations.jsonl").read_text().splitlines(keepends=True)
    (cut / "generations.jsonl").write_text("".join(lines[:2]) + lines[2][:20])
    run(sure, cut, seed=1)
    assert (cut / "traces.jsonl").read_text() == (whole / "traces.jsonl").read_text()
    again = (cut / "generations.jsonl").read_text().splitlines(keepends=True)
    assert again[:2] == lines[:2] and sorted(again) == sorted(lines)


def test_rows_that_cant_be_asked_stay_as_they_are(teacher: Proxy, tmp_path: Path) -> None:
    ask, right = {"role": "user", "content": "What is 1+2?"}, {"role": "assistant", "content": "3"}
    lines = [
        {"messages": [ask, right]},
        {"messages": [ask, {**right, "reasoning_content": "I know it"}]},
        {"messages": [ask, right, ask]},
        {"messages": [ask, {**right, "content": "three"}]},
        {"messages": [ask, {**right, "content": ""}]},
    ]
    file = write(tmp_path / "rows.jsonl", lines)
    keys = {"columns": {}, "expected": None}
    with pytest.raises(DataError, match=r"rows, row 3: .*'three' isn't a whole number.*expected: "):
        run(stage(teacher.address, file, **keys), tmp_path, seed=1)
    outcome = run(stage(teacher.address, file, conflicts="drop", **keys), tmp_path, seed=1)
    made = written(tmp_path)
    reasons = [row["provenance"].get("without_trace") for row in made]
    assert reasons == [None, None, "no_question", "unreadable_answer"]
    assert made[1]["mode"] == "think"
    for row, line in zip(made[1:], lines[1:4], strict=True):
        assert read_back(row).messages == read_back(line).messages
    assert outcome.rows["dropped"] == {"empty_answer": 1}
    assert outcome.metrics["without_trace"]["has_trace"] == 1


def test_the_last_turn_gets_the_trace_without_the_other_modes_flag(
    teacher: Proxy, tmp_path: Path
) -> None:
    """Earlier answers have no trace, so the think row doesn't train them."""
    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "What is 1+2? /no_think"},
        {"role": "assistant", "content": "3"},
    ]
    file = write(tmp_path / "rows.jsonl", [{"messages": talk}])
    digit = RegexVerifier(pattern=r"\d")
    keys = {"columns": {}, "expected": None, "verifier": digit, "both_modes": True}
    run(stage(teacher.address, file, **keys), tmp_path, seed=1)
    think, plain = written(tmp_path)
    assert think["messages"][1] == {"role": "assistant", "content": "Hello", "train": False}
    assert think["messages"][2]["content"] == "What is 1+2?"
    assert [turn.train for turn in read_back(think).messages] == [True, False, True, True]
    assert plain["messages"] == talk
    assert read_back(plain).mode == "no_think"


def test_a_worked_answer_becomes_the_trace_of_a_model_without_modes(
    teacher: Proxy, rows: Path, tmp_path: Path
) -> None:
    run(stage(teacher.address, rows, trace="answer"), tmp_path, seed=1)
    assert traces_of(tmp_path) == ["1+2 makes 3", "4+5 makes 9", "2+2 makes 4"]
    first, *_, last = written(tmp_path)
    assert first["messages"][-1]["content"] == "It is 3."
    assert last["mode"] == "no_think", "8 is never right"


def test_an_answer_told_first_is_in_the_prompt_and_not_in_the_row(rows: Path) -> None:
    told = stage("m", rows, answer_first=True, instruction="Be short.")
    question, *_ = trace_questions(told, seed=1)[0]
    hint = HINT.format(answer="It is 3.")
    asked = list(as_problem(told, question).messages)
    assert asked == [{"role": "user", "content": f"What is 1+2?\n\n{hint}\n\nBe short."}]
    row = think_row(told, question, "so 3", "3")
    assert row["messages"][0] == {"role": "user", "content": "What is 1+2?"}


def test_a_variable_of_the_row_that_says_no_thinking_is_not_in_the_think_row(
    tmp_path: Path,
) -> None:
    variables = {"thinking": False, "documents_seen": 1}
    row = {"question": "1+2", "reply": "3", "chat_template_kwargs": variables}
    file = write(tmp_path / "rows.jsonl", [row])
    subject = stage("m", file, expected=None)
    ((question,), _) = trace_questions(subject, seed=0)
    written_row = think_row(subject, question, "so 3", "3")
    assert written_row["chat_template_kwargs"] == {"documents_seen": 1}
    assert written_row["mode"] == "think"


def test_no_trace_at_all_ends_with_the_reasons(learnt: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"stage traces: no trace came of 4 rows: .*'trace_cut': 4"):
        run(stage(str(learnt), rows, max_new_tokens=2, temperature=0.0, tries=1), tmp_path, seed=1)
    assert not (tmp_path / "traces.jsonl").exists()


def test_a_key_or_a_server_that_is_missing_is_said_before_the_first_stage(
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("DUALIGN_TEST_KEY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    model = {"url": address, "name": "teacher", "key_env": "DUALIGN_TEST_KEY"}
    file = recipe(tmp_path, rows, model)
    for command in ("plan", "run"):
        assert main([command, str(file)]) == 2
        line = "stage traces: model: teacher: the environment variable DUALIGN_TEST_KEY isn't set"
        assert line in capsys.readouterr().err
    monkeypatch.setenv("DUALIGN_TEST_KEY", "sk-of-a-test")
    assert main(["plan", str(file)]) == 0
    line = f"stage traces: model: no server can be reached at {address} now (Connection refused)"
    assert line in caplog.text
