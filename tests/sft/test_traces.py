"""Traces for rows that have none: a model that has learnt a few sums thinks about them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dualign.data.config import SourceConfig
from dualign.data.conversation import Conversation
from dualign.data.rows.sources import to_conversation
from dualign.errors import DataError
from dualign.sft.config import QuestionData, TracesStage
from dualign.sft.questions import HINT, as_problem, read_questions
from dualign.sft.traces import run
from dualign.sft.tries import think_row
from dualign.verifiers.regex import RegexVerifier
from tests.chat_model import make_model, make_tokenizer, prompt
from tests.processes import once

# What the taught model samples differs with threads and processor, and some tests expect one sample:
# they pass on most runs, and stay out of the default run until the model is sure of its traces.
pytestmark = pytest.mark.slow

SUMS = {"1+2": 3, "4+5": 9, "2+2": 4, "7+1": 8}
OFFSETS = {"1+2": (0,), "4+5": (0,), "2+2": (0, 1), "7+1": (1,)}
"""The first two are answered right, the third sometimes, the last never."""
COLUMNS = {"prompt": "question", "completion": "reply"}


def teach(folder: Path) -> None:
    """Save a model that thinks before it answers, with traces of two lengths."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    rows = []
    for question, right in SUMS.items():
        for offset in OFFSETS[question]:
            number = right + offset
            for mode, said in (
                ("think", f"so {number}\n</think>\n\n{number}"),
                ("think", f"so it is {number}\n</think>\n\n{number}"),
                ("no_think", f"{question} makes {number}"),
            ):
                start, ids = (
                    tokenizer(text, add_special_tokens=False)["input_ids"]
                    for text in (
                        prompt(tokenizer, f"What is {question}?", mode),
                        f"{said}<|im_end|>",
                    )
                )
                rows.append((start + ids, [-100] * len(start) + ids))
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [0] * (length - len(row)) for row, _ in rows])
    labels = torch.tensor([row + [-100] * (length - len(row)) for _, row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(90):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "thinker")
    tokenizer.save_pretrained(folder / "thinker")


@pytest.fixture(scope="session")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "thinker", teach) / "thinker"


def write(file: Path, lines: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = [
        {"id": f"q{n}", "question": f"What is {q}?", "reply": f"It is {right}.", "sum": right}
        for n, (q, right) in enumerate(SUMS.items())
    ]
    return write(tmp_path_factory.mktemp("rows") / "sums.jsonl", lines)


def stage(thinker: Path, rows: Path, **keys: Any) -> TracesStage:
    source = SourceConfig(path=str(rows), columns=keys.pop("columns", COLUMNS))
    defaults = {"verifier": "integer", "expected": "{sum}", "max_new_tokens": 40}
    data = QuestionData(sources=(source,), conflicts=keys.pop("conflicts", "error"))
    return TracesStage(name="traces", model=str(thinker), data=data, **{**defaults, **keys})


def written(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / "traces.jsonl").read_text().splitlines()]


def read_back(row: dict[str, Any]) -> Conversation:
    return to_conversation(row, source=SourceConfig(path="traces.jsonl"), index=0)


def test_right_traces_become_think_rows_and_the_others_stay_no_think_rows(
    thinker: Path, rows: Path, tmp_path: Path
) -> None:
    outcome = run(stage(thinker, rows, tries=6), tmp_path, seed=1)
    by_id = {row["id"]: row for row in written(tmp_path)}
    for n, right in enumerate(list(SUMS.values())[:3]):
        row = read_back(by_id[f"q{n}"])
        assert row.mode == "think"
        assert row.messages[-1].content == f"It is {right}."
        assert row.messages[-1].thinking in (f"so {right}", f"so it is {right}")
    last = by_id["q3"]
    assert read_back(last).mode == "no_think"
    assert last["messages"][-1] == {"role": "assistant", "content": "It is 8."}
    assert last["provenance"]["without_trace"] == "no_right_answer"
    assert last["provenance"]["tries"] == 6
    metrics = outcome.metrics
    assert (metrics["think_rows"], metrics["no_think_rows"]) == (3, 1)
    assert metrics["without_trace"] == {"no_right_answer": 1}
    assert metrics["tries"] == 3 + sum(metrics["rejected"].values())
    assert outcome.rows["in"] == outcome.rows["kept"] == 4
    assert {(e["mode"], e["kept"]) for e in outcome.rows["by"]} == {("think", 3), ("no_think", 1)}


def test_a_row_says_who_thought_about_it_and_how(thinker: Path, rows: Path, tmp_path: Path) -> None:
    run(stage(thinker, rows, tries=6), tmp_path, seed=1)
    provenance = written(tmp_path)[0]["provenance"]
    assert (provenance["model"], len(provenance["sha256"])) == ("thinker", 64)
    assert (provenance["source"], provenance["row"]) == ("sums", 0)
    assert provenance["try"] == provenance["tries"] == provenance["right"] == 1
    assert provenance["temperature"] == 1.0 and provenance["answer_first"] is False
    assert str(thinker.parent) not in (tmp_path / "traces.jsonl").read_text()


def test_of_several_right_traces_the_shortest_or_all_are_taken(
    thinker: Path, rows: Path, tmp_path: Path
) -> None:
    for choose in ("shortest", "all"):
        (tmp_path / choose).mkdir()
        run(stage(thinker, rows, tries=8, choose=choose), tmp_path / choose, seed=1)
    of_first = [row for row in written(tmp_path / "all") if row["id"] == "q0"]
    traces = [row["messages"][-1]["reasoning_content"] for row in of_first]
    assert sorted(traces) == ["so 3", "so it is 3"], "what was written twice comes once"
    short = written(tmp_path / "shortest")
    assert [row["messages"][-1]["reasoning_content"] for row in short[:2]] == ["so 3", "so 9"]
    assert short[0]["provenance"]["tries"] == 8


def test_a_trace_out_of_bounds_is_rejected_by_its_length(
    thinker: Path, rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "low").mkdir(), (tmp_path / "high").mkdir()
    low = run(stage(thinker, rows, tries=6, min_trace_tokens=6), tmp_path / "low", seed=1)
    high = run(stage(thinker, rows, tries=6, max_trace_tokens=6), tmp_path / "high", seed=1)
    assert low.metrics["trace_tokens"]["p10"] == len("so it is 3")
    assert high.metrics["trace_tokens"]["max"] == len("so 3")
    assert low.metrics["rejected"]["too_short"] and high.metrics["rejected"]["too_long"]


def test_the_models_answer_both_modes_and_no_row_without_a_trace(
    thinker: Path, rows: Path, tmp_path: Path
) -> None:
    keys = {"answer": "model", "both_modes": True, "without_trace": "drop", "tries": 6}
    outcome = run(stage(thinker, rows, **keys), tmp_path, seed=1)
    made = written(tmp_path)
    assert [row["mode"] for row in made] == ["think", "no_think"] * 3
    assert [row["messages"][-1]["content"] for row in made[:2]] == ["3", "It is 3."]
    assert outcome.rows["dropped"] == {"no_right_answer": 1}
    assert outcome.rows["in"] == 4 == outcome.rows["kept"] + 1


def test_a_cut_off_run_goes_on_without_asking_twice(
    thinker: Path, rows: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    run(stage(thinker, rows), whole, seed=1)
    lines = (whole / "generations.jsonl").read_text().splitlines(keepends=True)
    (cut / "generations.jsonl").write_text("".join(lines[:3]) + lines[3][:20])
    run(stage(thinker, rows), cut, seed=1)
    assert (cut / "traces.jsonl").read_text() == (whole / "traces.jsonl").read_text()
    again = (cut / "generations.jsonl").read_text().splitlines(keepends=True)
    assert again[:3] == lines[:3] and sorted(again) == sorted(lines)


def test_rows_that_cant_be_asked_stay_as_they_are(thinker: Path, tmp_path: Path) -> None:
    ask, right = {"role": "user", "content": "What is 1+2?"}, {"role": "assistant", "content": "3"}
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    lines = [
        {"messages": [ask, right]},
        {"messages": [ask, {**right, "reasoning_content": "I know it"}]},
        {"messages": [ask, right], "tools": [tool]},
        {"messages": [ask, right, ask]},
        {"messages": [ask, {**right, "content": "three"}]},
        {"messages": [ask, {**right, "content": ""}]},
    ]
    file = write(tmp_path / "rows.jsonl", lines)
    keys = {"columns": {}, "expected": None}
    with pytest.raises(DataError, match=r"rows, row 4: .*'three' isn't a whole number.*expected: "):
        run(stage(thinker, file, **keys), tmp_path, seed=1)
    outcome = run(stage(thinker, file, conflicts="drop", **keys), tmp_path, seed=1)
    made = written(tmp_path)
    reasons = [row["provenance"].get("without_trace") for row in made]
    assert reasons == [None, None, "tools", "no_question", "unreadable_answer"]
    assert made[1]["mode"] == "think" and made[2]["tools"] == [tool]
    for row, line in zip(made[1:], lines[1:5], strict=True):
        assert read_back(row).messages == read_back(line).messages
    assert outcome.rows["dropped"] == {"empty_answer": 1}
    assert outcome.metrics["without_trace"]["has_trace"] == 1


def test_the_last_turn_gets_the_trace_without_the_other_modes_flag(
    thinker: Path, tmp_path: Path
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
    keys = {"columns": {}, "expected": None, "verifier": digit, "both_modes": True, "tries": 20}
    run(stage(thinker, file, **keys), tmp_path, seed=1)
    think, plain = written(tmp_path)
    assert think["messages"][1] == {"role": "assistant", "content": "Hello", "train": False}
    assert think["messages"][2]["content"] == "What is 1+2?"
    assert [turn.train for turn in read_back(think).messages] == [True, False, True, True]
    assert plain["messages"] == talk
    assert read_back(plain).mode == "no_think"


def test_a_worked_answer_becomes_the_trace_of_a_model_without_modes(
    thinker: Path, rows: Path, tmp_path: Path
) -> None:
    run(stage(thinker, rows, trace="answer", tries=2, temperature=0.1), tmp_path, seed=1)
    first, *_, last = written(tmp_path)
    assert first["messages"][-1]["reasoning_content"] == "1+2 makes 3"
    assert first["messages"][-1]["content"] == "It is 3."
    assert last["mode"] == "no_think", "8 is never right"


def test_an_answer_told_first_is_in_the_prompt_and_not_in_the_row(
    thinker: Path, rows: Path
) -> None:
    told = stage(thinker, rows, answer_first=True, instruction="Be short.")
    question, *_ = read_questions(told, seed=1)[0]
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
    subject = stage(Path("m"), file, expected=None)
    ((question,), _) = read_questions(subject, seed=0)
    written_row = think_row(subject, question, "so 3", "3")
    assert written_row["chat_template_kwargs"] == {"documents_seen": 1}
    assert written_row["mode"] == "think"


def test_no_trace_at_all_ends_with_the_reasons(thinker: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"stage traces: no trace came of 4 rows: .*'trace_cut': 4"):
        run(stage(thinker, rows, max_new_tokens=2), tmp_path, seed=1)
    assert not (tmp_path / "traces.jsonl").exists()
