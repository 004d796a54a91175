"""`columns` of a source: a mapped file gives the tokens of one with our names; mistakes are named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dualign.config import Document, parse
from dualign.data.cache import cache_key
from dualign.data.columns import column_problems, read_value
from dualign.data.config import DataConfig, SourceConfig
from dualign.data.faults import RowError
from dualign.data.prepare import DataRequest, prepare_pairs, prepare_sft
from dualign.data.rows.columns import mapped_row
from dualign.data.rows.loading import _first_shuffled, _hub
from dualign.data.rows.messages import as_messages
from dualign.data.rows.reading import as_yaml, read_source
from dualign.data.rows.sources import to_conversation, to_pair
from dualign.data.text.template import load_template
from dualign.errors import DataError

WriteRows = Callable[..., Path]
HI, YES = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}
F = {"type": "function", "function": {"name": "f", "parameters": {}}}
# (columns, a row of the file, the same row with our names)
MAPPED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "names": (
        {"prompt": "Question", "thinking": "Complex_CoT", "completion": "Response"},
        {"Question": "Hi", "Complex_CoT": "why", "Response": "yes"},
        {"prompt": "Hi", "thinking": "why", "completion": "yes"},
    ),
    "messages of other names": (
        {"messages": "conversation", "role": "speaker", "content": "text"},
        {"conversation": [{"speaker": "USER", "text": "Hi"}, {"speaker": "bot", "text": "yes"}]},
        {"messages": [HI, YES]},
    ),
    "one name of a message": (
        {"content": "text"},
        {"messages": [{"from": "human", "text": "Hi"}, {"from": "gpt", "text": "yes"}]},
        {"messages": [HI, YES]},
    ),
    "roles by number": (
        {
            "messages": "turns",
            "role": {"from": "who", "user": [0], "assistant": 1},
            "content": "text",
        },
        {"turns": [{"who": 0, "text": "Hi"}, {"who": 1, "text": "yes"}]},
        {"messages": [HI, YES]},
    ),
    "traces in messages": (
        {"messages": "turns", "thinking": "thought"},
        {"turns": [HI, YES | {"thought": "why"}]},
        {"messages": [HI, YES | {"thinking": "why"}]},
    ),
    "a template": (
        {"prompt": "{instruction}\n\n{context}", "completion": "answer"},
        {"instruction": "Add.", "context": "1 2", "answer": "3"},
        {"prompt": "Add.\n\n1 2", "completion": "3"},
    ),
    "a template with an empty part": (
        {"prompt": "{instruction}\n\n{context}", "completion": "answer"},
        {"instruction": "Add.", "context": "", "answer": "3"},
        {"prompt": "Add.", "completion": "3"},
    ),
    "a template with words and numbers": (
        {"prompt": "Add {a} and {b}: {{}}", "completion": "{sum}"},
        {"a": 1, "b": 2.5, "sum": 3.5},
        {"prompt": "Add 1 and 2.5: {}", "completion": "3.5"},
    ),
    "a history": (
        {"prompt": "query", "completion": "response", "history": "past"},
        {"query": "Hi", "response": "yes", "past": [["A?", "B"]]},
        {"prompt": "Hi", "completion": "yes", "history": [["A?", "B"]]},
    ),
    "paths": (
        {
            "prompt": "data.ask",
            "completion": "data.answers.0.text",
            "system": "data.as JSON.system",
        },
        {
            "data": {
                "ask": "Hi",
                "answers": [{"text": "yes"}],
                "as JSON": json.dumps({"system": "Be brief."}),
            }
        },
        {"prompt": "Hi", "completion": "yes", "system": "Be brief."},
    ),
    "a name with a dot": (
        {"prompt": "data.ask", "completion": {"from": "{answer}"}},
        {"data.ask": "Hi", "{answer}": "yes"},
        {"prompt": "Hi", "completion": "yes"},
    ),
    "a system text for all rows": (
        {"system": {"value": "Be brief."}},
        {"messages": [HI, YES]},
        {"messages": [HI, YES], "system": "Be brief."},
    ),
    "a system text for all rows, and the row's own": (
        {"system": {"value": "Be brief."}},
        {"messages": [{"role": "system", "content": "Be kind."}, HI, YES]},
        {"messages": [{"role": "system", "content": "Be kind."}, HI, YES]},
    ),
    "modes": (
        {"mode": {"from": "type", "think": ["cot"], "no_think": ["direct", "short"]}},
        {"messages": [HI, YES], "type": "short"},
        {"messages": [HI, YES], "mode": "no_think"},
    ),
    "modes of a switch": (
        {"mode": {"from": "enable_thinking", "think": True, "no_think": False}},
        {"prompt": "Hi", "completion": "yes", "enable_thinking": False},
        {"prompt": "Hi", "completion": "yes", "mode": "no_think"},
    ),
    "tools": (
        {"tools": "functions", "prompt": "q", "completion": "a"},
        {"q": "Hi", "a": "yes", "functions": json.dumps([F])},
        {"prompt": "Hi", "completion": "yes", "tools": [F]},
    ),
    "another shape's columns beside": (
        {"prompt": "q", "completion": "a"},
        {"q": "Hi", "a": "yes", "messages": [HI], "instruction": "x", "output": "y", "text": "z"},
        {"prompt": "Hi", "completion": "yes"},
    ),
    "the other half under our own name": (
        {"completion": "answer"},
        {"prompt": "Hi", "answer": "yes", "text": "z"},
        {"prompt": "Hi", "completion": "yes"},
    ),
    "the chosen answer alone": (
        {"prompt": "prompt", "completion": "chosen"},
        {"prompt": "Hi", "chosen": "yes", "rejected": "no"},
        {"prompt": "Hi", "completion": "yes"},
    ),
    "two texts of one object": (
        {"messages": "conversation", "user": "human", "assistant": "answer"},
        {"conversation": [{"human": "Hi", "answer": "yes"}, {"human": "So?", "answer": "no"}]},
        {"messages": [HI, YES, HI | {"content": "So?"}, YES | {"content": "no"}]},
    ),
    "an object with a system text and a trace": (
        {"messages": "turns", "user": "input", "assistant": "output"},
        {"turns": [{"system": "Be brief.", "input": "Hi", "reasoning": "why", "output": "yes"}]},
        {"messages": [HI, YES | {"thinking": "why"}], "system": "Be brief."},
    ),
    "texts in turn": ({"messages": "data"}, {"data": ["Hi", "yes"]}, {"messages": [HI, YES]}),
}
MAPPED_PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "names": (
        {"prompt": "question", "chosen": "response_j", "rejected": "response_k"},
        {"question": "Hi", "response_j": "yes", "response_k": "no"},
        {"prompt": "Hi", "chosen": "yes", "rejected": "no"},
    ),
    "messages": (
        {"chosen": "chosen_messages", "rejected": "rejected_messages"},
        {"chosen_messages": [HI, YES], "rejected_messages": [HI, YES | {"content": "no"}]},
        {"prompt": "Hi", "chosen": "yes", "rejected": "no"},
    ),
    "messages of other names": (
        {"messages": "turns", "role": "who", "content": "text"},
        {
            "turns": [{"who": "human", "text": "Hi"}],
            "chosen": {"who": "gpt", "text": "yes"},
            "rejected": {"who": "gpt", "text": "no"},
        },
        {"prompt": "Hi", "chosen": "yes", "rejected": "no"},
    ),
    "traces by a template": (
        {"prompt": "q", "chosen": "<think>{t}</think>{a}", "rejected": "<think>{t}</think>{b}"},
        {"q": "Hi", "t": "why", "a": "yes", "b": "no"},
        {"prompt": "Hi", "chosen": "<think>why</think>yes", "rejected": "<think>why</think>no"},
    ),
    "one prompt of two": (
        {"prompt": "short"},
        {"short": "Hi", "question": "A long hi", "chosen": "yes", "rejected": "no"},
        {"prompt": "Hi", "chosen": "yes", "rejected": "no"},
    ),
    "a rejected answer beside messages": (
        {"rejected": "rejected_response", "system": {"value": "Be brief."}},
        {"messages": [HI, YES], "rejected_response": "no"},
        {"prompt": "Hi", "chosen": "yes", "rejected": "no", "system": "Be brief."},
    ),
}


def source(columns: dict[str, Any], path: str = "r") -> SourceConfig:
    document = Document(file="r.yaml")
    config = parse(SourceConfig, {"path": path, "columns": columns}, document)
    assert config is not None, document.problems
    return config


@pytest.mark.parametrize("name", MAPPED)
def test_a_mapped_row_is_the_row_with_our_names(name: str) -> None:
    columns, row, ours = MAPPED[name]
    table = datasets.Dataset.from_list([row] * 2)
    made = to_conversation(table[1], source=source(columns), index=0)
    assert made == to_conversation(ours, source=SourceConfig(path="r"), index=0)


@pytest.mark.parametrize("name", MAPPED_PAIRS)
def test_a_mapped_pair_is_the_pair_with_our_names(name: str) -> None:
    columns, row, ours = MAPPED_PAIRS[name]
    made = to_pair(row, source=source(columns), index=0)
    assert made == to_pair(ours, source=SourceConfig(path="r"), index=0)


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="{}<>/"), min_size=1).filter(
    lambda text: text.strip() == text != ""
)


@given(parts=st.lists(TEXTS | st.just(""), min_size=1, max_size=4))
def test_a_template_of_blanks_joins_the_texts_that_are_there(parts: list[str]) -> None:
    row = {f"c{number}": part for number, part in enumerate(parts)}
    template = "\n\n".join(f"{{{name}}}" for name in row)
    assert read_value("prompt", template, row) == "\n\n".join(filter(None, parts))


@pytest.mark.parametrize(
    ("columns", "key", "words"),
    [
        ({"promt": "q"}, "promt", "no name of ours (did you mean 'prompt'?"),
        ({"response": "r"}, "response", "it is called 'completion' here"),
        ({"Question": "prompt"}, "Question", "our name comes first: prompt: Question"),
        ({"images": "pictures"}, "images", "no name of ours"),
        ({"prompt": 3}, "prompt", "expected a column, a template in quotes"),
        ({"prompt": ""}, "prompt", "expected a column"),
        ({"prompt": None}, "prompt", "expected a column"),
        ({"prompt": ["a", "b"]}, "prompt", "expected a column"),
        ({"prompt": {"instruction": None}}, "prompt", 'a template needs quotes: "{instruction}"'),
        ({"prompt": "{a"}, "prompt", "write {{ and }} for braces that are text"),
        ({"prompt": "{}"}, "prompt", "expected a column's name in the braces"),
        ({"prompt": "{a:>3}"}, "prompt", "a template takes names alone"),
        ({"prompt": "{{a}}"}, "prompt", "names no column"),
        ({"prompt": {"from": "a", "think": "b"}}, "prompt", "'think': no value of prompt"),
        ({"mode": {"from": "t", "thnk": "b"}}, "mode", "did you mean 'think'?"),
        ({"mode": {"from": "t", "think": []}}, "mode", "found nothing"),
        ({"mode": {"value": "think", "from": "t"}}, "mode", "'value': no value of mode"),
        ({"messages": "m", "prompt": "p"}, "prompt", "messages is given too"),
        ({"thinking": "t", "chosen": "a"}, "chosen", "<think>{trace}</think>{answer}"),
    ],
)
def test_a_mistake_in_columns_is_named(columns: dict[str, Any], key: str, words: str) -> None:
    ((place, message),) = column_problems(columns)
    assert place == f"columns.{key}" and words in message
    document = Document(file="r.yaml")
    parse(SourceConfig, {"path": "r", "columns": columns}, document)
    assert len(document.problems) == 1


def request(path: Path | str, tokenizer: PreTrainedTokenizerFast, **keys: Any) -> DataRequest:
    options = {name: keys.pop(name) for name in ("num_proc", "dedup") if name in keys}
    data = DataConfig(
        sources=(SourceConfig(path=str(path), **keys),), max_tokens=256, packing="none", **options
    )
    template = load_template("dualign", tokenizer=tokenizer)
    return DataRequest(data, tokenizer, template, seed=0)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"prompt": "Qestion", "completion": "answer"},
            r"columns\.prompt: no column 'Qestion' .did",
        ),
        (
            {"prompt": "{nothing}", "completion": "answer"},
            "the file has Question, answer, data, turns",
        ),
        ({"prompt": "data.ak", "completion": "answer"}, "nothing at 'data.ak' .* mean 'ask'"),
        ({"prompt": "data.ask.0", "completion": "answer"}, "nothing at .*data.ask is 'Hi'"),
        ({"prompt": "Question", "completion": "answer", "content": "text"}, "messages have none"),
        ({"messages": "turns", "content": "txt"}, "columns.content: no column 'txt' .* 'text'"),
        ({"messages": "turns", "thinking": "why"}, "thinking: .*; messages have role, text"),
        ({"prompt": "Question"}, "1 of 1 rows have no known shape"),
    ],
)
def test_a_column_that_the_file_doesnt_have_is_refused_before_its_rows_are_read(
    columns: dict[str, Any], words: str, write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows(
        [
            {
                "Question": "Hi",
                "answer": "yes",
                "data": {"ask": "Hi"},
                "turns": [{"role": "user", "text": "Hi"}],
            }
        ]
    )
    with pytest.raises(DataError, match=words):
        prepare_sft(request(path, tokenizer, columns=columns))


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"mode": {"from": "type", "think": "cot"}}, "unknown_mode"),
        ({"role": {"from": "role", "user": "user"}}, "unknown_role"),
        ({"label": {"from": "type", "good": "a", "bad": "direct"}}, "bad_answer"),
        ({"label": {"from": "type", "good": "a", "bad": "b"}}, "bad_content"),
        ({"system": "{messages}"}, "bad_content"),
    ],
)
def test_a_value_that_isnt_mapped_is_a_fault_of_its_row(columns: dict[str, Any], code: str) -> None:
    row = {"messages": [HI, YES], "type": "direct"}
    with pytest.raises(RowError) as raised:
        to_conversation(row, source=source(columns), index=0)
    assert raised.value.code == code


ROWS = [{"q": f"Add {n}.", "a": f"It is {n}.", "kind": "x", "score": 1.0} for n in range(40)]
OURS = [{"prompt": row["q"], "completion": row["a"]} for row in ROWS]
COLUMNS = {"prompt": "q", "completion": "a"}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"num_proc": 2},
        {"rows": 10},
        {"streaming": True},
        {"streaming": True, "rows": 10},
        {"dedup": True},
    ],
    ids=str,
)
def test_a_mapped_file_gives_the_tokens_of_one_with_our_names(
    keys: dict[str, Any], write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    from dualign.data.config import DedupConfig

    if "dedup" in keys:
        keys = {"dedup": DedupConfig()}
    mapped = prepare_sft(request(write_rows(ROWS), tokenizer, columns=COLUMNS, **keys))
    ours = prepare_sft(request(write_rows(OURS, "ours.jsonl"), tokenizer, **keys))
    assert list(mapped.train["input_ids"]) == list(ours.train["input_ids"])
    assert mapped.sources[0]["columns"] == COLUMNS and "columns" not in ours.sources[0]
    assert mapped.sources[0]["unused"] == ["kind", "score"]


@pytest.mark.parametrize("form", ["parquet", "csv", "saved"])
def test_a_mapping_reads_every_kind_of_file(
    form: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    table, path = datasets.Dataset.from_list(ROWS), tmp_path / f"rows.{form}"
    {"parquet": table.to_parquet, "csv": table.to_csv, "saved": table.save_to_disk}[form](path)
    data = prepare_sft(request(path, tokenizer, columns=COLUMNS))
    assert data.rows["kept"] == len(ROWS)


def test_pairs_are_mapped_and_the_cache_knows_the_mapping(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{"q": f"Add {n}.", "good": "yes", "bad": "no"} for n in range(4)]
    path = write_rows(rows)
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    right = request(path, tokenizer, columns=columns)
    turned = request(path, tokenizer, columns=columns | {"chosen": "bad", "rejected": "good"})
    assert cache_key("pairs", right) != cache_key("pairs", turned)
    chosen = [
        tokenizer.decode(prepare_pairs(data).train["chosen_ids"][0]) for data in (right, turned)
    ]
    assert chosen[0].startswith("yes") and chosen[1].startswith("no")


def test_rows_without_a_value_of_the_mapping_are_counted(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows([*ROWS[:3], {"q": "Hi", "a": None}, {"q": None, "a": "yes"}])
    with pytest.raises(RowError, match=r"row 3: 2 of 5 rows have no known shape"):
        prepare_sft(request(path, tokenizer, columns=COLUMNS))
    dropping = {"on_fault": {"unknown_shape": "drop"}}
    data = prepare_sft(request(path, tokenizer, columns=COLUMNS, **dropping))
    assert (data.rows["in"], data.rows["dropped"]) == (5, {"unknown_shape": 2})


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": "{a}\n\n{b}", "completion": "yes", "system": {"value": "It's: 3"}},
        {"mode": {"from": "is thinking", "think": [True, 1], "no_think": ["no", "ä"]}},
    ],
)
def test_a_mapping_is_shown_as_yaml_on_one_line(columns: dict[str, Any]) -> None:
    text = as_yaml(columns)
    assert "\n" not in text and yaml.safe_load(text) == columns


def test_rows_of_a_hub_dataset_are_mapped_as_those_of_files(tmp_path: Path) -> None:
    """The reader of hub ids also takes a folder laid out as a hub dataset is."""
    (tmp_path / "data").mkdir()
    for shard in range(3):
        rows = [{"Question": f"{shard}/{n}?", "Response": "yes"} for n in range(20)]
        name = f"train-{shard:05d}-of-00003.parquet"
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "data" / name)
    plain = SourceConfig(path=str(tmp_path))
    streamed = replace(plain, rows=30, streaming=True)
    for table in (_hub(plain), _first_shuffled(streamed, _hub(streamed), 5).table):
        reading = read_source(plain, table, pairs=False, supervise="assistant")
        assert reading.source.columns == {"prompt": "Question", "completion": "Response"}
        made = to_conversation(table[3], source=reading.source, index=3)
        assert [message.content for message in made.messages] == [table[3]["Question"], "yes"]


@pytest.mark.parametrize(
    "columns",
    [
        {"messages": "turns", "content": "text"},
        {"messages": "turns", "role": "from", "content": "content"},
    ],
)
def test_messages_of_a_list_may_have_their_texts_under_different_keys(
    columns: dict[str, str],
) -> None:
    turns = [
        {"from": "system", "content": "Be brief."},
        {"from": "human", columns["content"]: "Hi"},
        {"from": "gpt", "value": "Yes", "content": ""},
    ]
    messages = as_messages(mapped_row({"turns": turns}, columns, pairs=False)["messages"])
    assert [message.content for message in messages] == ["Be brief.", "Hi", "Yes"]


def test_a_role_that_is_null_can_be_mapped() -> None:
    columns = {
        "messages": "turns",
        "role": {"from": "who", "system": [None], "user": ["q"], "assistant": ["a"]},
    }
    turns = [{"who": who, "content": "x"} for who in (None, "q", "a")]
    messages = mapped_row({"turns": turns}, columns, pairs=False)["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
