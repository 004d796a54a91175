"""All shapes of rows and kinds of files give the same conversation."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from dualign.data.config import SourceConfig
from dualign.data.conversation import Message
from dualign.data.rows.loading import load_source
from dualign.data.rows.source_files import combined_sha256, fingerprint_files
from dualign.data.rows.sources import source_label, to_conversation, to_pair
from dualign.errors import DataError

ROWS = SourceConfig(path="rows.jsonl")
HI = (Message(role="user", content="Hi"), Message(role="assistant", content="Yo"))
OPENAI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": OPENAI},
        {"messages": json.dumps(OPENAI)},
        {
            "messages": [
                OPENAI[0],
                {"role": "assistant", "content": [{"type": "text", "text": "Yo"}]},
            ]
        },
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]},
        {"prompt": "Hi", "completion": "Yo"},
        {"prompt": OPENAI[:1], "completion": OPENAI[1:]},
        {"prompt": OPENAI[:1], "completion": "Yo"},
        {"instruction": "Hi", "input": None, "output": "Yo"},
        {"instruction": "Hi", "input": "", "output": "Yo", "messages": None},
    ],
)
def test_every_shape_of_a_row_gives_the_same_conversation(row: dict[str, Any]) -> None:
    made = to_conversation(row, source=ROWS, index=4)
    assert (made.messages, made.mode, made.source, made.row) == (HI, "no_think", "rows", 4)


def test_alpaca_input_and_system_are_kept() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "You add."}
    made = to_conversation(row, source=ROWS, index=0)
    assert [message.content for message in made.messages] == ["You add.", "Add.\n\n1 2", "3"]


def test_smoltalk2_kwargs_are_carried_and_none_is_dropped() -> None:
    row = {
        "messages": OPENAI,
        "chat_template_kwargs": {
            "custom_instructions": "Be a vampire.",
            "enable_thinking": False,
            "python_tools": None,
            "xml_tools": ['{"name": "f"}'],
        },
    }
    made = to_conversation(row, source=ROWS, index=0)
    assert made.mode == "no_think"
    assert made.template_kwargs == {
        "custom_instructions": "Be a vampire.",
        "xml_tools": ['{"name": "f"}'],
    }


def test_tools_and_calls_are_read_from_json() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    row = {
        "messages": [
            OPENAI[0],
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "2"},
            OPENAI[1],
        ],
        "tools": json.dumps([{"type": "function", "function": {"name": "f"}}]),
    }
    made = to_conversation(row, source=ROWS, index=0)
    assert made.tools == ({"type": "function", "function": {"name": "f"}},)
    assert made.messages[1].tool_calls == (
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
    )


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Yo", "rejected": "No"},
        {"prompt": OPENAI[:1], "chosen": OPENAI[1:], "rejected": [OPENAI[1] | {"content": "No"}]},
        {"chosen": OPENAI, "rejected": [OPENAI[0], OPENAI[1] | {"content": "No"}]},
        {"prompt": "Hi", "chosen": OPENAI, "rejected": [OPENAI[0], OPENAI[1] | {"content": "No"}]},
        {
            "prompt": OPENAI[:1],
            "chosen": OPENAI,
            "rejected": [OPENAI[0], OPENAI[1] | {"content": "No"}],
        },
    ],
)
def test_every_shape_of_a_pair_gives_the_same_pair(row: dict[str, Any]) -> None:
    made = to_pair(row, source=ROWS, index=0)
    assert made.prompt == HI[:1]
    assert made.chosen == HI[1:]
    assert [message.content for message in made.rejected] == ["No"]


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "completion": "Yo"}, {"prompt": "1", "completion": "x"}]
    table = datasets.Dataset.from_list(rows)
    table.to_json(tmp_path / "a.jsonl")
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.json").write_text(json.dumps(rows))
    with (
        (tmp_path / "a.jsonl").open("rb") as plain,
        gzip.open(tmp_path / "c.jsonl.gz", "wb") as packed,
    ):
        shutil.copyfileobj(plain, packed)
    table.save_to_disk(tmp_path / "saved")
    for name in ("a.jsonl", "a.csv", "a.parquet", "b.json", "c.jsonl.gz", "saved", "a.json*"):
        found = list(load_source(SourceConfig(path=name), base=tmp_path))
        assert [str(row["completion"]) for row in found] == ["Yo", "x"], name
    assert len(load_source(SourceConfig(path="a.jsonl", split="train[:1]"), base=tmp_path)) == 1


def test_objects_of_different_keys_keep_their_own_keys(tmp_path: Path) -> None:
    def row(arguments: dict[str, Any]) -> dict[str, Any]:
        call = {"function": {"name": "f", "arguments": arguments}}
        return {"messages": [OPENAI[0], {"role": "assistant", "content": "", "tool_calls": [call]}]}

    path = tmp_path / "calls.jsonl"
    path.write_text("\n".join(json.dumps(row(item)) for item in ({"a": 1}, {"b": "x"})))
    source = SourceConfig(path=str(path))
    calls = [
        to_conversation(item, source=source, index=0)
        .messages[1]
        .tool_calls[0]["function"]["arguments"]
        for item in load_source(source)
    ]
    assert calls == [{"a": 1}, {"b": "x"}]


def test_a_mistyped_file_is_not_looked_up_on_the_hub(tmp_path: Path) -> None:
    for path in ("rows.jsonl", "./rows", "*.parquet"):
        with pytest.raises(DataError, match=r"no such file|matches no file"):
            load_source(SourceConfig(path=path), base=tmp_path)


def test_a_broken_file_and_an_empty_one_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"a": 1}\n{"a": [1\n')
    with pytest.raises(DataError, match=r"broken\.jsonl, line 2: isn't JSON"):
        load_source(SourceConfig(path="broken.jsonl"), base=tmp_path)
    with pytest.raises(DataError, match="holds no data file"):
        (tmp_path / "empty").mkdir()
        load_source(SourceConfig(path="empty"), base=tmp_path)


def test_fingerprints_follow_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("abc")
    expected = (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2: "abc"
    )
    assert fingerprint_files("a.jsonl", tmp_path) == [(str(tmp_path / "a.jsonl"), expected)]
    before = combined_sha256(fingerprint_files("*.jsonl", tmp_path))
    (tmp_path / "b.jsonl").write_text("abd")
    assert combined_sha256(fingerprint_files("*.jsonl", tmp_path)) != before
    assert fingerprint_files("owner/name", tmp_path) == []


def test_labels_tell_files_and_splits_apart() -> None:
    assert source_label(SourceConfig(path="data/rows.jsonl.gz")) == "rows"
    assert source_label(SourceConfig(path="org/set", name="SFT", split="x")) == "set/SFT/x"
    assert source_label(SourceConfig(path="rows.jsonl", label="mine")) == "mine"


def test_settings_and_fingerprints_import_nothing_heavy() -> None:
    program = (
        "import sys, dualign.data.config, dualign.data.rows.source_files;"
        "print([name for name in ('torch', 'transformers', 'datasets', 'numpy') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
