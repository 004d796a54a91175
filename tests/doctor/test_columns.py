"""A source of unknown shape gets a mapping to paste, with what its first row would become."""

import json
import re
from pathlib import Path

import pytest

from dualign.cli.main import main
from tests.doctor.conftest import Examine


def write(path: Path, *rows: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_doctor_prints_the_mapping_to_try_and_what_the_first_row_becomes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"id": "a1", "stem": "What is one more?", "worked": "One more is two, as ever."}
    assert main(["doctor", write(tmp_path / "r.jsonl", row, row)]) == 1
    out = capsys.readouterr().out
    assert "columns: {prompt: stem, completion: worked}" in out
    assert "user: 'What is one more?'" in out and "assistant: 'One more is two, as ever.'" in out


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        (
            {"q_text": [{"author": "User", "message": "Hi"}, {"author": "bot", "message": "yes"}]},
            "columns: {messages: q_text, role: author, content: message}",
        ),
        (
            {"problem": "1 + 1?", "solution": "It is two.", "answer": "2"},
            "columns: {prompt: problem, completion: solution}",
        ),
        (
            {"prompt": "Hi", "generations": ["a", "b"]},
            "{prompt: prompt, completion: generations.0}",
        ),
        (
            {"user_msg": "Hi you", "bot_msg": "I am well", "thoughts": "They say hi to me."},
            "{prompt: user_msg, thinking: thoughts, completion: bot_msg}",
        ),
        (
            {"chat": [{"who": "customer", "said": "Hi"}, {"who": "agent", "said": "Yo"}]},
            "{messages: chat, role: {from: who, user: [customer], assistant: [agent]}, content: said}",
        ),
        (
            {"record": {"stem": "What is one more?", "worked": "It is two."}},
            "{prompt: record.stem, completion: record.worked}",
        ),
        (
            {"record": {"talk": [{"role": "user", "text": "Hi"}, {"role": "bot", "text": "Yo"}]}},
            "{messages: record.talk, role: role, content: text}",
        ),
    ],
)
def test_the_mapping_follows_names_and_forms(
    row: dict[str, object], mapping: str, examine: Examine
) -> None:
    findings, _ = examine({"rows": [row, row]})
    (finding,) = [entry for entry in findings.all() if entry.code == "columns_to_try"]
    assert mapping in finding.message


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        ({"prompt": "Hi", "response": "a", "helpfulness": 1}, "unknown_shape", "with its rating"),
        ({"question": "Hi", "answer": "a b", "reward": 0.1}, "unknown_shape", "learned alike"),
        ({"prompt": "Hi", "source": "x"}, "unknown_shape", "a question alone.*`pairs` stage"),
        ({"question": "What is it?", "answer": "A dog", "image": "a.png"}, "multimodal", "image"),
    ],
)
def test_no_mapping_is_tried_where_it_would_train_something_wrong(
    row: dict[str, object], code: str, words: str, examine: Examine
) -> None:
    findings, _ = examine({"rows": [row, row]})
    codes = {entry.code: entry.message for entry in findings.all()}
    assert "columns_to_try" not in codes
    assert re.search(words, codes[code])


def test_keys_of_messages_that_arent_read_are_said(examine: Examine) -> None:
    turns: list[dict[str, object]] = [
        {"role": "user", "content": "Hi", "id": 1, "train": None},
        {"role": "assistant", "content": "Yes", "score": 2, "lang": ""},
    ]
    findings, _ = examine({"rows": [{"messages": turns}]})
    notes = [entry.message for entry in findings.all() if entry.code == "columns_read"]
    assert notes == [
        "rows: messages[].score would change what is learned, by the name, and isn't used",
        "rows: columns that aren't used: messages[].id",
    ]


def test_pairs_of_known_names_are_told_from_conversations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question": f"Is {n} odd?", "response_j": f"It is {n}.", "response_k": f"No {n}."}
        for n in range(3)
    ]
    assert main(["doctor", write(tmp_path / "r.jsonl", *rows), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]["kept"] == 3


def test_a_recipes_columns_are_checked_by_doctor_and_said_by_plan_and_inspect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shrunk: Path
) -> None:
    rows = [{"q": f"What is {n}?", "a": f"It is {n}.", "score": 0.5} for n in range(4)]
    write(tmp_path / "r.jsonl", *rows)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: r\noutput_dir: out\nstages:\n  - name: sft\n    kind: sft\n    model: {shrunk}\n"
        "    data: {sources: [{path: r.jsonl, columns: {prompt: q, completion: a}}]}\n"
    )
    assert main(["doctor", str(recipe)]) == 0
    for command in (["plan"], ["inspect"]):
        assert main([*command, str(recipe)]) == 0
    out = capsys.readouterr().out
    assert out.count("r.jsonl: score would change what is learned") == 2
    wrong = "sft.data.sources.0.columns={prompt: qq, completion: a}"
    assert main(["plan", str(recipe), wrong]) == 2
    assert "columns.prompt: no column 'qq'" in capsys.readouterr().err
    assert main(["plan", str(recipe), "sft.data.sources.0.columns={promt: q}"]) == 2
    assert "columns.promt: no name of ours (did you mean 'prompt'?)" in capsys.readouterr().err


def test_a_reading_by_names_and_columns_that_arent_used_are_said(examine: Examine) -> None:
    ours = {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    }
    findings, _ = examine({"rows": [ours | {"score": 2}], "plain": [ours]})
    notes = [entry.message for entry in findings.all() if entry.code == "columns_read"]
    assert notes == ["rows: score would change what is learned, by the name, and isn't used"]
    findings, _ = examine({"rows": [{"question": "Why?", "response": "So."}]})
    notes = [entry.message for entry in findings.all() if entry.code == "columns_read"]
    assert len(notes) == 1 and "{prompt: question, completion: response}" in notes[0]
