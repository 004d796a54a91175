"""Rows that are held out: a number, a part, or a source of their own; rows at most."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dualign.config import Document, parse
from dualign.data.config import DataConfig, SourceConfig
from dualign.data.prepare import DataRequest, SFTData, prepare_sft
from dualign.data.rows.reading import reading_notes
from dualign.data.seeds import held_out, rng
from dualign.data.text.template import load_template
from dualign.sft.config import SFTStage

Write = Callable[[list[dict[str, Any]], str], Path]


def rows(name: str, count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{name}, number {n}?", "completion": f"Yes {n}."} for n in range(count)]


@pytest.mark.parametrize(
    ("asked", "held"), [(0, 0), (3, 3), (0.25, 5), (0.01, 1), (0.99, None), (20, None)]
)
def test_a_number_or_a_part_of_the_rows_is_held_out(asked: float, held: int | None) -> None:
    if held is None:
        with pytest.raises(ValueError, match=f"validation_rows is {asked}, but only 20 rows"):
            held_out(20, asked, rng(0, "validation"))
        return
    assert len(held_out(20, asked, rng(0, "validation"))) == held


@pytest.mark.parametrize("asked", [-1, 2.5, -0.1, True, "3"])
def test_a_part_is_below_one_and_a_number_is_whole(asked: Any) -> None:
    document = Document(file="r.yaml")
    parse(DataConfig, {"sources": [{"path": "r"}], "validation_rows": asked}, document)
    assert len(document.problems) == 1 and "validation_rows" in document.problems[0]


def prepared(
    sources: list[SourceConfig], tokenizer: PreTrainedTokenizerFast, **keys: Any
) -> SFTData:
    data = DataConfig(sources=tuple(sources), max_tokens=64, packing="none", cache=False, **keys)
    return prepare_sft(DataRequest(data, tokenizer, load_template("dualign"), seed=0))


def texts(table: Any, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return ["test" if "test," in tokenizer.decode(ids) else "train" for ids in table["input_ids"]]


@pytest.mark.parametrize("share", [{}, {"share": 0.5}, {"share": 1.0}])
def test_a_source_of_validation_is_held_out_whole_and_takes_no_part_in_shares(
    share: dict[str, float], write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    first, second, test = (
        SourceConfig(path=str(write_rows(rows(name, count), f"{name}.jsonl")), **keys)
        for name, count, keys in (
            ("first", 10, share),
            ("second", 10, {"share": 0.5} if share == {"share": 0.5} else {}),
            ("test", 6, {"validation": True}),
        )
    )
    sources = [test, first] if share == {"share": 1.0} else [test, first, second]
    data = prepared(sources, tokenizer, validation_rows=2)
    assert data.validation is not None
    assert sorted(texts(data.validation, tokenizer)) == ["test"] * 6 + ["train"] * 2
    assert set(texts(data.train, tokenizer)) == {"train"}
    assert data.rows["in"] == 6 + 10 * (len(sources) - 1)
    assert data.rows["kept"] + sum(data.rows["dropped"].values()) == data.rows["in"]
    by = {entry["source"]: entry for entry in data.rows["by"]}
    assert (by["test"]["validation"], by["test"]["tokens"]) == (6, 0)


def test_mistakes_about_validation_are_named() -> None:
    def problems(**data: Any) -> str:
        document = Document(file="r.yaml")
        parse(SFTStage, {"name": "s", "model": "m", **data}, document)
        return "\n".join(document.problems)

    test = {"path": "test", "validation": True}
    train = {"path": "train"}
    evaluated = {"train": {"eval_strategy": "epoch"}}
    assert "source or more to train on, found none" in problems(data={"sources": [test]})
    weighted = problems(data={"sources": [train, test | {"share": 0.5}]})
    assert "rows of validation are taken once" in weighted
    assert problems(data={"sources": [train, test]}, **evaluated) == ""
    assert "or a source with validation" in problems(data={"sources": [train]}, **evaluated)


def test_rows_takes_at_most_so_many_and_says_when_there_are_fewer(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = str(write_rows(rows("train", 10), "train.jsonl"))
    fewer = prepared([SourceConfig(path=path, rows=4)], tokenizer)
    assert (len(fewer.train), list(reading_notes(fewer.sources))) == (4, [])
    everything = prepared([SourceConfig(path=path, rows=40)], tokenizer)
    assert len(everything.train) == 10
    assert list(reading_notes(everything.sources)) == [
        "train.jsonl: holds 10 rows; rows: 40 takes them all"
    ]
