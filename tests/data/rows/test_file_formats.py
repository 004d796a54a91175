"""Rows come out of JSON and CSV files as they stand there, wherever in the file a key comes up first."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from dualign.data.config import SourceConfig
from dualign.data.rows.json_rows import JsonRows
from dualign.data.rows.loading import load_source
from dualign.data.rows.sources import to_conversation
from dualign.errors import DataError

LONG = "word " * 20_000
PLAIN = [{"role": "user", "content": LONG}, {"role": "assistant", "content": "yes"}]
CALL = {"type": "function", "function": {"name": "look", "arguments": {"x": 1}}}
LATE = {
    "messages": [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "", "reasoning_content": "I look", "tool_calls": [CALL]},
    ],
    "tools": [{"type": "function", "function": {"name": "look"}}],
    "mode": "think",
}


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("streaming", [False, True])
def test_keys_that_come_up_after_ten_megabytes_are_read(tmp_path: Path, streaming: bool) -> None:
    path = written(tmp_path / "a.jsonl", [{"messages": PLAIN}] * 120 + [LATE])
    assert path.stat().st_size > 11 << 20
    source = SourceConfig(path=str(path), streaming=streaming)
    table = load_source(source)
    assert table[120] == LATE
    assert table[0]["messages"] == PLAIN and table[0]["tools"] is None
    read = to_conversation(table[120], source=source, index=120)
    assert (read.mode, read.messages[1].thinking) == ("think", "I look")
    assert read.messages[1].tool_calls[0]["function"]["name"] == "look"


def test_files_of_a_folder_may_have_different_keys(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", [{"messages": PLAIN}])
    written(tmp_path / "b.jsonl", [LATE])
    table = load_source(SourceConfig(path=str(tmp_path)))
    assert [row["mode"] for row in table] == [None, "think"]
    assert table[1] == LATE


def test_texts_that_look_like_something_else_stay_texts(tmp_path: Path) -> None:
    said = ["4", "true", "null", '{"a": 1}', "[1]", "NA", "1.0"]
    rows = [{"prompt": "What?", "completion": text} for text in said]
    table = load_source(SourceConfig(path=str(written(tmp_path / "a.jsonl", rows))))
    assert table["completion"][:] == said
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert load_source(SourceConfig(path=str(tmp_path / "a.json")))["completion"][:] == said


def test_dates_stay_as_they_are_written(tmp_path: Path) -> None:
    """Arrow makes times of a column of nothing else, and other texts of those."""
    said = ["2025-07-01", "2024-01-02 10:00", "2024-01-02T10:00:00Z"]
    rows = [{"prompt": "When?", "completion": text} for text in said]
    table = load_source(SourceConfig(path=str(written(tmp_path / "a.jsonl", rows))))
    assert table["completion"][:] == said
    rows.append({"prompt": "When?", "completion": "4"})
    table = load_source(SourceConfig(path=str(written(tmp_path / "b.jsonl", rows))))
    assert table["completion"][:] == [*said, "4"]


@pytest.mark.parametrize(("name", "sep"), [("a.csv", ","), ("a.tsv", "\t")])
def test_csv_fields_are_text(tmp_path: Path, name: str, sep: str) -> None:
    lines = ["prompt,completion,mode", "2+2?,4,", "name?,NA,no_think", "value?,1.0,", "who?,None,"]
    (tmp_path / name).write_text("\n".join(lines).replace(",", sep) + "\n")
    for streaming in (False, True):
        table = load_source(SourceConfig(path=str(tmp_path / name), streaming=streaming))
        assert table["completion"][:] == ["4", "NA", "1.0", "None"]
        assert table["mode"][:] == [None, "no_think", None, None]


def test_kinds_of_values_make_the_columns(tmp_path: Path) -> None:
    rows = [
        {"a": "x", "b": True, "c": 1, "d": 1, "e": [1], "f": None, "g": "x"},
        {"a": None, "b": False, "c": 2, "d": 0.5, "e": None, "f": None, "g": {"y": 1}},
    ]
    found = JsonRows((written(tmp_path / "a.jsonl", rows),), "train").features
    kinds = {name: getattr(entry, "dtype", None) for name, entry in found.items()}
    assert [kinds[name] for name in "abcdf"] == ["string", "bool", "int64", "float64", "string"]
    assert {type(found[name]).__name__ for name in "eg"} == {"Json"}


def test_a_broken_line_is_refused_with_its_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [LATE])
    path.write_text(path.read_text() + '{"messages": [\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: isn't JSON"):
        load_source(SourceConfig(path=str(path)))


def test_parquet_files_of_different_columns_are_told_apart(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"prompt": "a", "completion": "b"}]).to_parquet(
        tmp_path / "a.parquet"
    )
    datasets.Dataset.from_list([{"messages": PLAIN[1:]}]).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(
        DataError, match=r"its files have different columns \(Couldn't cast messages"
    ):
        load_source(SourceConfig(path=str(tmp_path)))


def test_a_number_where_text_belongs_is_refused(tmp_path: Path) -> None:
    source = SourceConfig(path="a")
    with pytest.raises(DataError, match="4: expected text or a list of messages"):
        to_conversation({"prompt": "2+2?", "completion": 4}, source=source, index=0)
