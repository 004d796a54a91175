"""Rated answers: a prompt, one answer and a verdict, as KTO sets have them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerFast

from dualign.data.config import DataConfig, DedupConfig, SourceConfig
from dualign.data.faults import RowError
from dualign.data.prepare import DataRequest, prepare_pairs, prepare_rated
from dualign.data.rows.parser import dump_row, load_row
from dualign.data.rows.sources import to_rated
from dualign.data.text.template import load_template
from dualign.errors import DataError

SOURCE = SourceConfig(path="r")
HI, YES = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}
NO = {"role": "assistant", "content": "no"}
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {}}}


@pytest.mark.parametrize(
    ("row", "desirable"),
    [
        ({"prompt": "Hi", "completion": "yes", "label": True}, True),
        ({"prompt": [HI], "completion": [YES], "label": False}, False),
        ({"messages": [HI, YES], "label": 1}, True),
        ({"messages": [HI, YES], "label": 0.0}, False),
        ({"messages": [HI, YES], "kto_tag": "true"}, True),
        ({"messages": [HI, YES], "label": "False"}, False),
        ({"messages": [HI, YES], "label": -1}, False),
        ({"messages": [HI, YES], "label": "Desirable"}, True),
        ({"instruction": "Hi", "output": "yes", "kto_tag": False}, False),
        ({"conversations": [HI, YES], "label": True, "kto_tag": True}, True),
    ],
)
def test_every_shape_of_a_conversation_may_have_a_verdict(
    row: dict[str, Any], desirable: bool
) -> None:
    rated = to_rated(row, source=SOURCE, index=3)
    assert ([turn.content for turn in rated.prompt], rated.answer[0].content) == (["Hi"], "yes")
    assert (rated.desirable, rated.row, rated.mode) == (desirable, 3, "no_think")
    assert load_row(dump_row(rated), source=SOURCE, index=3) == rated


def test_the_prompt_is_all_before_the_last_turn_with_calls_and_tools() -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    result = {"role": "tool", "content": "sun", "name": "weather"}
    row = {"messages": [HI, called, result, YES], "tools": [WEATHER], "label": False}
    rated = to_rated(row, source=SOURCE, index=0)
    assert [turn.role for turn in rated.prompt] == ["user", "assistant", "tool"]
    assert rated.tools and rated.answer[0].content == "yes"


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        ({"messages": [HI, YES]}, "bad_label", "no label: expected label: true .* an sft stage"),
        ({"messages": [HI, YES], "label": None}, "bad_label", "no label"),
        ({"messages": [HI, YES], "label": 3}, "bad_label", "label is 3: .*good: "),
        ({"messages": [HI, YES], "label": "sums"}, "bad_label", "label is 'sums'"),
        ({"messages": [HI, YES], "label": 0.5}, "bad_label", "label is 0.5"),
        ({"messages": [HI, YES], "label": True, "kto_tag": False}, "bad_label", "differ"),
        ({"prompt": "Hi", "completion": "", "label": False}, "empty_answer", "empty"),
        ({"messages": [HI], "label": True}, "not_one_answer", "the answer continues"),
        (
            {"prompt": [HI], "completion": [YES, HI, NO], "label": True},
            "not_one_answer",
            "expected one assistant turn",
        ),
        ({"messages": [YES], "label": True}, "no_answer", "no user turn: expected one in the mess"),
        ({"text": "Once.", "label": True}, "plain_text", "no prompt"),
        (
            {"prompt": "Hi", "chosen": "yes", "rejected": "no"},
            "wrong_stage",
            "a preference pair .* a loss of pairs such as apo_zero",
        ),
    ],
)
def test_rows_without_an_answer_or_its_verdict_are_refused(
    row: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(RowError, match=words) as raised:
        to_rated(row, source=SOURCE, index=0)
    assert raised.value.code == code


def test_other_columns_and_values_are_mapped() -> None:
    columns = {"prompt": "q", "completion": "a"}
    columns |= {"label": {"from": "stars", "good": [4, 5], "bad": [1, 2]}}
    source = SourceConfig(path="r", columns=columns)
    verdicts = [
        to_rated({"q": "Hi", "a": "yes", "stars": stars}, source=source, index=0).desirable
        for stars in (1, 5)
    ]
    assert verdicts == [False, True]
    with pytest.raises(RowError, match="doesn't map to a label"):
        to_rated({"q": "Hi", "a": "yes", "stars": 3}, source=source, index=0)


WriteRows = Callable[[list[dict[str, Any]]], Path]


def request(
    path: Path, tokenizer: PreTrainedTokenizerFast, source: dict[str, Any], **data: Any
) -> DataRequest:
    sources = (SourceConfig(path=str(path), **source),)
    config = DataConfig(sources=sources, **{"max_tokens": 256, "packing": "none", **data})
    return DataRequest(config, tokenizer, load_template("dualign", tokenizer=tokenizer), seed=0)


def rows_of(count: int, **columns: Any) -> list[dict[str, Any]]:
    """Rows of both modes, a third of which are undesirable."""
    rows = []
    for number in range(count):
        thinks = number % 2 == 0
        trace = {"reasoning_content": f"so {number}"} if thinks else {}
        answer = {"role": "assistant", "content": f"It is {number}.", **trace}
        asked = {"role": "user", "content": f"What is {number}?"}
        mode = "think" if thinks else "no_think"
        row = {"messages": [asked, answer], "label": number % 3 != 0, "mode": mode, **columns}
        rows.append(row)
    return rows


def test_prepared_rows_hold_prompt_answer_and_verdict(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = prepare_rated(request(write_rows(rows_of(12)), tokenizer, {}, validation_rows=2))
    assert data.validation is not None and len(data.validation) == 2
    assert (len(data.train), data.rows["desirable"] + data.rows["undesirable"]) == (10, 10)
    assert data.rows["desirable"] == sum(data.train["desirable"])
    assert sum(entry["undesirable"] for entry in data.rows["by"]) == data.rows["undesirable"]
    for row in data.train:
        answer = tokenizer.decode(row["answer_ids"])
        mode, _ = data.groups[row["group"]]
        assert ("so" in answer) == (mode == "think")
        number = int(answer.split("It is ")[1].split(".")[0])
        assert row["desirable"] == (number % 3 != 0)
        assert f"What is {number}?" in tokenizer.decode(row["prompt_ids"])
    again = prepare_rated(request(write_rows(rows_of(12)), tokenizer, {}, validation_rows=2))
    assert again.rows == data.rows and again.train[:] == data.train[:]


@pytest.mark.parametrize("names", [["desirable", "undesirable"], ["bad", "good"]], ids=str)
@pytest.mark.parametrize("values", [None, [0, 1]], ids=["by name", "by number"])
def test_a_numbered_verdict_is_that_of_its_name(
    names: list[str],
    values: list[int] | None,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Parquet files of the hub number the words of a column in any order."""
    table = datasets.Dataset.from_list([{**row, "label": row["label"] * 1} for row in rows_of(9)])
    table = table.cast_column("label", datasets.ClassLabel(names=names))
    table.to_parquet(tmp_path / "rows.parquet")
    first_is_good = names[0] == "desirable" if values is None else True
    good, bad = (0, 1) if first_is_good else (1, 0)
    columns = {"label": {"from": "label", "good": [good], "bad": [bad]}} if values else {}
    data = prepare_rated(request(tmp_path / "rows.parquet", tokenizer, {"columns": columns}))
    expected = {number: (number % 3 != 0) != first_is_good for number in range(9)}
    for row in data.train:
        number = int(tokenizer.decode(row["answer_ids"]).split("It is ")[1].split(".")[0])
        assert row["desirable"] == expected[number]


def test_a_class_without_a_name_is_no_verdict(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    table = datasets.Dataset.from_list([{**row, "label": row["label"] * 1} for row in rows_of(9)])
    features = datasets.ClassLabel(names=["bad", "good"])
    table = table.cast_column("label", features).map(
        lambda row, number: {"label": -1 if number == 4 else row["label"]}, with_indices=True
    )
    table.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(RowError, match=r"row 4: the row has no label"):
        prepare_rated(request(tmp_path / "rows.parquet", tokenizer, {}))


def test_faulty_rows_are_dropped_and_counted(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = rows_of(9)
    rows[2]["label"], rows[5]["label"] = None, "maybe"
    rows = [json.loads(json.dumps(row)) for row in rows]
    rows[3]["messages"][1]["content"] = ""
    for row in rows:
        row["label"] = None if row["label"] is None else str(row["label"])
    with pytest.raises(RowError, match=r"row 2: the row has no label.* \[bad_label\]"):
        prepare_rated(request(write_rows(rows), tokenizer, {}))
    data = prepare_rated(request(write_rows(rows), tokenizer, {"on_fault": {"any": "drop"}}))
    assert data.rows["dropped"] == {"bad_label": 2, "empty_answer": 1}
    assert (data.rows["in"], data.rows["kept"]) == (9, 6)


def test_the_same_answer_with_another_verdict_is_no_duplicate(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = rows_of(6)
    rows += [rows[1], {**rows[1], "label": not rows[1]["label"]}]
    data = prepare_rated(request(write_rows(rows), tokenizer, {}, dedup=DedupConfig()))
    assert (data.rows["kept"], data.rows["dropped"]) == (7, {"duplicate": 1})


def test_a_row_that_is_too_long_loses_its_first_turns(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{**row, "mode": "no_think"} for row in rows_of(6) if row["mode"] == "no_think"]
    longer = [{"role": "user", "content": "apples " * 60}, {"role": "assistant", "content": "Ok."}]
    rows[0]["messages"] = [*longer, *rows[0]["messages"]]
    data = prepare_rated(
        request(write_rows(rows), tokenizer, {}, max_tokens=90, too_long="cut_history")
    )
    assert data.rows["repaired"] == {"cut_history": 1}
    assert not any("apples" in tokenizer.decode(ids) for ids in data.train["prompt_ids"])


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (True, "all 4 answers .* are desirable: .* an sft stage"),
        (False, "all 4 .* are undesirable: .* makes all answers unlikely"),
    ],
)
def test_answers_of_one_verdict_are_refused(
    label: bool, words: str, write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows(rows_of(4, label=label))
    for _ in range(2):  # also what is in the cache
        with pytest.raises(DataError, match=words):
            prepare_rated(request(path, tokenizer, {}))


def test_rows_of_the_other_kind_are_refused(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    pairs = [{"prompt": "Hi", "chosen": "yes", "rejected": "no"}] * 3
    with pytest.raises(DataError, match=r"is a preference pair .*a loss of pairs such as apo_zero"):
        prepare_rated(request(write_rows(pairs), tokenizer, {}))
    with pytest.raises(DataError, match="loss_type kto or apo_zero_unpaired takes it"):
        prepare_pairs(request(write_rows(rows_of(4)), tokenizer, {}))
