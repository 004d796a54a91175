"""The same rows give the same tokens, whatever kind of file holds them."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dualign.data.config import DataConfig, DedupConfig, SourceConfig
from dualign.data.mix.mixture import mix
from dualign.data.request import DataRequest
from dualign.data.rows.loading import load_source
from dualign.data.rows.padding import struct_columns, without_padding
from dualign.data.text.template import load_template

# Arrow keeps one type and one order for each key.
SCALARS = {"city": st.text("abc é", max_size=4), "hour": st.integers(0, 9), "near": st.booleans()}
SCALARS |= {"tags": st.lists(st.text("xy", max_size=2), max_size=2)}


def objects(depth: int) -> st.SearchStrategy[dict[str, Any]]:
    optional = dict(SCALARS)
    if depth:
        optional["place"] = objects(depth - 1)
        optional["stops"] = st.lists(objects(depth - 1), min_size=1, max_size=2)
    return st.fixed_dictionaries({}, optional=optional).map(
        lambda drawn: {key: drawn[key] for key in optional if key in drawn}
    )


def whole(depth: int) -> dict[str, Any]:
    """An object with every key: one that is empty in all rows has no form in Parquet."""
    scalars = {"city": "b", "hour": 1, "near": True, "tags": ["x"]}
    inner = {"place": whole(depth - 1), "stops": [whole(depth - 1)]} if depth else {}
    return {**scalars, **inner}


def row(arguments: list[dict[str, Any]], schema: dict[str, Any]) -> dict[str, Any]:
    calls = [
        {"id": f"c{number}", "type": "function", "function": {"name": "go", "arguments": item}}
        for number, item in enumerate(arguments)
    ]
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "Go."},
        {"role": "assistant", "content": "Yes.", "tool_calls": calls},
    ]
    turns += [
        {"role": "tool", "content": "4", "tool_call_id": call["id"], "name": "go"} for call in calls
    ]
    if calls:
        turns.append({"role": "assistant", "content": "Gone."})
    tool = {"type": "function", "function": {"name": "go", "parameters": schema}}
    return {"messages": turns, "tools": [tool]}


ROWS = st.lists(
    st.builds(row, st.lists(objects(2), max_size=2), objects(2)), min_size=1, max_size=4
)


def tokens(source: Path, tokenizer: PreTrainedTokenizerFast, **options: Any) -> list[Any]:
    data = DataConfig(sources=(SourceConfig(path=str(source)),), max_tokens=9000, **options)
    request = DataRequest(data, tokenizer, load_template("dualign"), seed=1, base=None)
    table = mix(request, "conversation").table
    return list(zip(table["input_ids"][:], table["labels"][:], strict=True))


def write_all(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    lines = folder / "a.jsonl"
    lines.write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    (folder / "a.json").write_text(json.dumps(rows))
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, folder / "a.parquet")
    with pa.ipc.new_stream(folder / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    datasets.Dataset(table).save_to_disk(folder / "saved")
    as_json = datasets.Features({"messages": datasets.Json(), "tools": datasets.Json()})
    datasets.Dataset.from_list(rows, features=as_json).save_to_disk(folder / "json")
    names = ("a.jsonl", "a.json", "a.parquet", "a.arrow", "saved", "json")
    return [folder / name for name in names]


@settings(max_examples=4)
@given(rows=ROWS)
def test_the_same_rows_give_the_same_tokens_from_every_kind_of_file(
    rows: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    full = whole(2)  # so that each key comes first in the same order everywhere
    rows = [row([full], full), *rows]
    files = write_all(rows, tmp_path_factory.mktemp("rows"))
    first, *others = [tokens(file, tokenizer) for file in files]
    for file, other in zip(files[1:], others, strict=True):
        assert other == first, file.name


def test_screening_drops_padding_too(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [row([{"city": "Oslo"}], {"city": "x"}), row([{"hour": 2}], {"hour": 3})]
    lines, *_, saved, _ = write_all(rows, tmp_path)
    dedup = DedupConfig()
    assert tokens(lines, tokenizer) == tokens(saved, tokenizer, dedup=dedup)
    assert "null" not in tokenizer.decode(tokens(saved, tokenizer)[0][0])


def test_nulls_of_json_and_of_lists_stay(tmp_path: Path) -> None:
    real = row([{"city": None, "tags": ["a", None]}], {"default": None})
    (tmp_path / "a.jsonl").write_text(json.dumps(real) + "\n")
    table = load_source(SourceConfig(path=str(tmp_path / "a.jsonl")))
    assert without_padding(table[0], struct_columns(table.features)) == real
    arrow = datasets.Dataset(pa.Table.from_pylist([real]))
    cleaned = without_padding(arrow[0], struct_columns(arrow.features))
    (call,) = cleaned["messages"][1]["tool_calls"]
    assert call["function"]["arguments"] == {"tags": ["a", None]}
    assert cleaned["tools"] == [{"type": "function", "function": {"name": "go", "parameters": {}}}]
