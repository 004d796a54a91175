"""Rows that another stage takes are told so, and rated answers are never learned as good ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.faults import RowError
from dualign.data.prepare import DataRequest, prepare_pairs, prepare_sft
from dualign.data.rows.sources import to_conversation, to_pair
from dualign.data.text.template import load_template

SOURCE = SourceConfig(path="r")
HI, YES = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}
NO = {"role": "assistant", "content": "no"}
PAIR = {"prompt": "Hi", "chosen": "yes", "rejected": "no"}


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        ({"messages": [HI, NO], "label": False}, "bad_answer", "label is False: a rated answer"),
        ({"messages": [HI, NO], "kto_tag": False}, "bad_answer", "kto_tag is False"),
        ({"prompt": "Hi", "completion": "no", "label": "False"}, "bad_answer", "label is 'False'"),
        ({"prompt": "Hi", "completion": "no", "label": 0}, "bad_answer", "bad_answer: drop"),
        ({"prompt": "Hi", "completion": "no", "label": 0.0}, "bad_answer", "label is 0.0"),
        ({"prompt": "Hi", "completion": "no", "label": " bad"}, "bad_answer", "label"),
        ({"instruction": "Hi", "output": "no", "kto_tag": False}, "bad_answer", "kto_tag"),
        ({"prompt": "Hi", "completion": "no", "label": "undesirable"}, "bad_answer", "label"),
        (PAIR, "wrong_stage", "a preference pair .chosen . rejected.. A preference stage takes it"),
        ({"messages": [HI], "chosen": YES, "rejected": NO}, "no_answer", "no assistant turn"),
        (
            {"prompt": "1 + 1?", "ground_truth": "2"},
            "wrong_stage",
            "name the file in a task .prompt, answer.",
        ),
        ({"prompt": "1 + 1?", "answer": "2"}, "wrong_stage", "columns: .prompt: "),
        ({"problem": "1 + 1?", "solution": "2"}, "wrong_stage", "`pairs` and `eval` stages"),
        (
            {"prompt": [HI], "reward_model": {"ground_truth": "2"}, "data_source": "x"},
            "wrong_stage",
            "as for RL",
        ),
        ({"messages": [HI], "ground_truth": "2"}, "wrong_stage", "as for RL"),
        ({"messages": [HI], "answer": "2"}, "wrong_stage", "as for RL"),
        ({"messages": [HI, YES, HI], "ground_truth": "2"}, "wrong_stage", "as for RL"),
        ({"messages": [HI]}, "no_answer", "no assistant turn"),
        (
            {"prompt": "Hi", "completions": ["a", "b"], "labels": [True, False]},
            "wrong_stage",
            "steps are rated",
        ),
        (
            {"instruction": "Hi", "completions": [{"response": "a"}]},
            "wrong_stage",
            "several answers",
        ),
        (
            {"message_id": "1", "parent_id": None, "role": "prompter", "text": "Hi"},
            "wrong_stage",
            "a step of a message tree",
        ),
        ({"headline": "Two"}, "unknown_shape", "Expected messages"),
    ],
)
def test_rows_of_other_stages_are_told_which(row: dict[str, Any], code: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as raised:
        to_conversation(row, source=SOURCE, index=0)
    assert raised.value.code == code


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        ({"messages": [HI, YES]}, "wrong_stage", "a conversation .messages.. An sft stage takes"),
        ({"instruction": "Hi", "output": "yes"}, "wrong_stage", "An sft stage takes it"),
        ({"prompt": "Hi", "completion": "no", "label": True}, "wrong_stage", "KTO"),
        ({"messages": [HI, YES], "kto_tag": True}, "wrong_stage", "two answers to one prompt"),
        ({"prompt": "1 + 1?", "answer": "2"}, "wrong_stage", "as for RL"),
        ({"text": "Once."}, "unknown_shape", "chosen . rejected"),
    ],
)
def test_rows_that_are_no_pairs_are_told_what_they_are(
    row: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(RowError, match=words) as raised:
        to_pair(row, source=SOURCE, index=0)
    assert raised.value.code == code


@pytest.mark.parametrize(
    "extra", [{"label": True}, {"kto_tag": True}, {"label": "sums"}, {"label": 3}, {"label": None}]
)
def test_good_answers_and_other_labels_are_learned(extra: dict[str, Any]) -> None:
    made = to_conversation({"messages": [HI, YES]} | extra, source=SOURCE, index=0)
    assert [message.content for message in made.messages] == ["Hi", "yes"]


WriteRows = Callable[[list[dict[str, Any]]], Path]


def request(path: Path, tokenizer: PreTrainedTokenizerFast, **source: Any) -> DataRequest:
    data = DataConfig(sources=(SourceConfig(path=str(path), **source),), max_tokens=256)
    template = load_template("dualign", tokenizer=tokenizer)
    return DataRequest(data, tokenizer, template, seed=0)


def test_no_bad_answer_of_a_kto_file_is_learned(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [
        {"messages": [HI, YES if number % 3 else NO], "label": bool(number % 3)}
        for number in range(9)
    ]
    with pytest.raises(RowError, match=r"row 0: label is False.* \[bad_answer\]"):
        prepare_sft(request(write_rows(rows), tokenizer))
    kept = prepare_sft(request(write_rows(rows), tokenizer, on_fault={"bad_answer": "drop"}))
    assert (kept.rows["in"], kept.rows["kept"], kept.rows["dropped"]) == (9, 6, {"bad_answer": 3})
    text = "".join(tokenizer.decode(ids) for ids in kept.train["input_ids"])
    assert text.count("yes<|im_end|>") == 6 and "no<|im_end|>" not in text


def test_a_file_of_another_stage_is_refused_before_anything_is_tokenized(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(
        RowError, match=r"2 of 2 rows .* A preference stage takes it, .*\[wrong_stage"
    ):
        prepare_sft(request(write_rows([PAIR, PAIR]), tokenizer))
    with pytest.raises(RowError, match=r"1 of 1 rows .* An sft stage takes it \[wrong_stage"):
        prepare_pairs(request(write_rows([{"messages": [HI, YES]}]), tokenizer))


def test_many_columns_are_named_and_not_printed(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    row = {f"column_{number}": "word " * 200 for number in range(40)}
    with pytest.raises(RowError) as raised:
        prepare_sft(request(write_rows([row]), tokenizer))
    assert "and 34 more columns" in str(raised.value) and len(str(raised.value)) < 1500


SYSTEM, TOOLS = {"role": "system", "content": "Be brief."}, [{"name": "f", "parameters": {}}]
PAIRS: dict[str, dict[str, Any]] = {
    "messages and tools": {"messages": [HI], "tools": TOOLS, "chosen": YES, "rejected": NO},
    "messages and texts": {"messages": [HI], "chosen": "yes", "rejected": "no"},
    "messages as JSON": {"messages": json.dumps([HI]), "chosen": "yes", "rejected": "no"},
    "messages that hold the chosen answer": {
        "messages": [HI, YES],
        "chosen": [HI, YES],
        "rejected": [HI, NO],
    },
    "messages that hold the rejected answer": {
        "messages": [HI, NO],
        "chosen": "yes",
        "rejected": "no",
    },
    "messages with the chosen answer, and rejected": {"messages": [HI, YES], "rejected": "no"},
    "messages with the chosen answer, and rejected messages": {
        "messages": [HI, YES],
        "rejected": [HI, NO],
    },
    "instruction": {"instruction": "Hi", "chosen": "yes", "rejected": "no"},
    "instruction and empty input": {
        "instruction": "Hi",
        "input": "",
        "chosen": "yes",
        "rejected": "no",
    },
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_prompt_of_a_pair_may_have_columns_of_its_own(name: str) -> None:
    made = to_pair(PAIRS[name], source=SOURCE, index=0)
    parts = (made.prompt, made.chosen, made.rejected)
    assert [[message.content for message in part] for part in parts] == [["Hi"], ["yes"], ["no"]]
    assert len(made.tools) == len(PAIRS[name].get("tools", ()))


def test_llama_factorys_pairs_keep_input_system_and_history() -> None:
    row = {
        "instruction": "Add.",
        "input": "1 2",
        "system": "You add.",
        "history": [["Hi", "Hello"]],
        "chosen": "3",
        "rejected": "4",
    }
    made = to_pair(row, source=SOURCE, index=0)
    assert [(message.role, message.content) for message in made.prompt] == [
        ("system", "You add."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Add.\n\n1 2"),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "yes"},
        {"instruction": "Hi", "output": "yes"},
        {"prompt": [HI], "completion": [YES]},
    ],
)
def test_a_trace_and_a_history_beside_an_answer_are_learned(row: dict[str, Any]) -> None:
    made = to_conversation(row | {"thinking": "why"}, source=SOURCE, index=0)
    assert (made.mode, made.messages[-1].thinking) == ("think", "why")
    for history in ([["Hey", "Yo"]], [HI | {"content": "Hey"}, YES | {"content": "Yo"}]):
        made = to_conversation(row | {"history": history}, source=SOURCE, index=0)
        assert [message.content for message in made.messages] == ["Hey", "Yo", "Hi", "yes"]


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        ({"thinking": ["why"]}, "bad_content"),
        ({"history": ["Hey", "Yo"]}, "unknown_shape"),
        ({"history": [["Hey"]]}, "unknown_shape"),
    ],
)
def test_a_trace_or_a_history_of_another_form_is_refused(extra: dict[str, Any], code: str) -> None:
    with pytest.raises(RowError) as raised:
        to_conversation({"prompt": "Hi", "completion": "yes"} | extra, source=SOURCE, index=0)
    assert raised.value.code == code
