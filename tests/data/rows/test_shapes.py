"""Columns as published data sets have them, shapes over whole sources, and shapes that round-trip."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.conversation import Message
from dualign.data.faults import RowError
from dualign.data.rows import shapes
from dualign.data.rows.loading import sample_rows
from dualign.data.rows.shape_check import check_shapes, shapes_in
from dualign.data.rows.shapes import SHAPES, Row, RowShape
from dualign.data.rows.sources import to_conversation, to_pair
from dualign.errors import DataError

SOURCE = SourceConfig(path="r")
HI, YES = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}
NO = {"role": "assistant", "content": "no"}
FROM_HI, FROM_YES = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "yes"}
F = {"type": "function", "function": {"name": "f", "parameters": {}}}
SMOL_KWARGS = {
    "custom_instructions": None,
    "enable_thinking": False,
    "python_tools": None,
    "xml_tools": None,
}

# The columns of each set, as its card lists them; the texts are ours.
PUBLISHED: dict[str, dict[str, Any]] = {
    "smoltalk2 SFT": {"messages": [HI, YES], "chat_template_kwargs": SMOL_KWARGS, "source": "x"},
    "ultrachat_200k": {"prompt": "Hi", "prompt_id": "a1", "messages": [HI, YES]},
    "OpenHermes-2.5": {
        "custom_instruction": None,
        "language": None,
        "conversations": [
            {**FROM_HI, "weight": None},
            {**FROM_YES, "weight": None},
        ],
        "system_prompt": None,
        "model": None,
    },
    "alpaca": {
        "instruction": "Hi",
        "input": "",
        "output": "yes",
        "text": "Below is an instruction. ### Instruction: Hi ### Response: yes",
    },
    "tldr": {"prompt": "Hi", "completion": "yes"},
    "OpenR1-Math": {
        "problem": "Hi",
        "solution": "yes",
        "generations": ["yes"],
        "messages": [HI, YES],
    },
    "Bespoke-Stratos": {
        "system": None,
        "conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "yes"}],
    },
    "LLaMA-Factory ShareGPT": {
        "conversations": [FROM_HI, FROM_YES],
        "system": "",
        "tools": "",
    },
    "OpenAI fine-tuning": {
        "messages": [
            HI | {"name": None, "tool_calls": None},
            YES | {"weight": 1, "refusal": None},
        ],
        "parallel_tool_calls": None,
        "tools": None,
    },
}
PUBLISHED_PAIRS: dict[str, dict[str, Any]] = {
    "smoltalk2 Preference": {
        "prompt": "Hi",
        "chosen": [HI, YES],
        "rejected": [HI, NO],
        "chat_template_kwargs": SMOL_KWARGS,
        "source": "x",
    },
    "ultrafeedback_binarized": {
        "prompt": "Hi",
        "prompt_id": "a1",
        "chosen": [HI, YES],
        "rejected": [HI, NO],
        "messages": [HI, YES],
        "score_chosen": 9.0,
        "score_rejected": 2.0,
    },
    "hh-rlhf": {
        "chosen": "\n\nHuman: Hi\n\nAssistant: yes",
        "rejected": "\n\nHuman: Hi\n\nAssistant: no",
    },
    "orca_dpo_pairs": {"system": "", "question": "Hi", "chosen": "yes", "rejected": "no"},
    "LLaMA-Factory ranking": {
        "conversations": [FROM_HI],
        "chosen": FROM_YES,
        "rejected": {"from": "gpt", "value": "no"},
    },
    "implicit prompt": {"chosen": [HI, YES], "rejected": [HI, NO]},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_columns_of_published_sets_give_one_conversation(name: str) -> None:
    table = datasets.Dataset.from_list([PUBLISHED[name]] * 3)
    assert len(shapes_in(table, pairs=False)) == 1
    made = to_conversation(table[1], source=SOURCE, index=0)
    assert [(message.role, message.content) for message in made.messages] == [
        ("user", "Hi"),
        ("assistant", "yes"),
    ]
    assert made.mode == "no_think" and made.tools == () and made.template_kwargs == {}


@pytest.mark.parametrize("name", PUBLISHED_PAIRS)
def test_the_columns_of_published_sets_give_one_pair(name: str) -> None:
    table = datasets.Dataset.from_list([PUBLISHED_PAIRS[name]] * 3)
    assert len(shapes_in(table, pairs=True)) == 1
    made = to_pair(table[1], source=SOURCE, index=0)
    parts = (made.prompt, made.chosen, made.rejected)
    assert [[message.content for message in part] for part in parts] == [["Hi"], ["yes"], ["no"]]


def test_hermes_function_calling_keeps_tools_and_calls_as_text() -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    row = {
        "id": "1",
        "conversations": [
            {"from": "system", "value": "You call functions."},
            FROM_HI,
            {"from": "gpt", "value": call},
            {"from": "tool", "value": "<tool_response>\n2\n</tool_response>"},
            FROM_YES,
        ],
        "tools": json.dumps([F]),
        "category": "x",
    }
    made = to_conversation(datasets.Dataset.from_list([row])[0], source=SOURCE, index=0)
    assert [message.role for message in made.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert made.messages[2].content == call and made.tools == (F,)


def test_calls_of_each_kind_are_one_kind() -> None:
    function = {"name": "f", "arguments": '{"a": 1}'}
    new = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": function}]}
    old = {"role": "assistant", "content": None, "function_call": function}
    gpt = {"from": "function_call", "value": json.dumps(function)}
    made = [
        to_conversation({"messages": [HI, new]}, source=SOURCE, index=0),
        to_conversation({"messages": [HI, old]}, source=SOURCE, index=0),
        to_conversation({"conversations": [FROM_HI, gpt]}, source=SOURCE, index=0),
    ]
    calls = [call for entry in made for call in entry.messages[1].tool_calls]
    assert [call.get("id") for call in calls] == ["1", None, None]
    functions = {json.dumps(dict(call["function"])) for call in calls}
    assert functions == {'{"name": "f", "arguments": {"a": 1}}'}


@pytest.mark.parametrize("thought", ["why", [{"type": "text", "text": "why"}]])
def test_parts_of_type_thinking_are_the_trace(thought: Any) -> None:
    parts = [{"type": "thinking", "thinking": thought}, {"type": "text", "text": "yes"}]
    row = {"messages": [HI, {"role": "assistant", "content": parts}]}
    made = to_conversation(row, source=SOURCE, index=0)
    assert (made.mode, made.messages[1]) == (
        "think",
        Message(role="assistant", content="yes", thinking="why"),
    )
    odd = {"role": "assistant", "content": "yes", "thinking": {"steps": []}}
    with pytest.raises(RowError, match=r"a trace .* expected text \[bad_content\]"):
        to_conversation({"messages": [HI, odd]}, source=SOURCE, index=0)


@pytest.mark.parametrize(
    ("kwargs", "code"),
    [
        ({"xml_tools": ['{"name": "f"}'], "python_tools": ["def f(): ..."]}, None),
        ({"xml_tools": json.dumps(F), "custom_instructions": "Be brief."}, None),
        ({"xml_tools": 3}, "bad_tools"),
        ({"python_tools": [3]}, "bad_tools"),
        ({"custom_instructions": ["Be brief."]}, "bad_content"),
        ({"enable_thinking": "true"}, "unknown_mode"),
        ("{", "bad_tools"),
        (["xml_tools"], "unknown_shape"),
    ],
)
def test_smoltalk2_kwargs_have_their_types(kwargs: Any, code: str | None) -> None:
    row = {"messages": [HI, YES], "chat_template_kwargs": kwargs}
    if code is None:
        assert to_conversation(row, source=SOURCE, index=0).template_kwargs == kwargs
        return
    with pytest.raises(RowError) as raised:
        to_conversation(row, source=SOURCE, index=0)
    assert raised.value.code == code


def check(rows: list[dict[str, Any]], folder: Path, **options: Any) -> None:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(path=str(path), **options.pop("source", {}))
    drawn = sample_rows(source, seed=0, number=0, base=None)
    check_shapes(drawn.table, drawn.rows, source, DataConfig(sources=(source,)), pairs=False)


def test_a_source_of_two_shapes_is_refused_with_the_first_row_of_each(tmp_path: Path) -> None:
    rows = [{"messages": [HI, YES]}] * 5 + [{"instruction": "Hi", "output": "yes"}] * 2
    with pytest.raises(DataError) as raised:
        check(rows, tmp_path)
    text = str(raised.value)
    assert "rows of 2 shapes. messages: 5 rows, first row 0 (messages: [{" in text
    assert "instruction + output (Alpaca): 2 rows, first row 5 (instruction: 'Hi'" in text
    assert "source (a file or a split) of its own" in text


def test_an_unknown_shape_in_the_middle_is_found_before_anything_is_tokenized(
    tmp_path: Path,
) -> None:
    rows = [{"messages": [HI, YES]}] * 3 + [{"question": "Hi"}] * 2 + [{"messages": [HI, YES]}]
    with pytest.raises(RowError) as raised:
        check(rows, tmp_path)
    assert (raised.value.code, raised.value.row) == ("unknown_shape", 3)
    assert "2 of 6 rows have no known shape; the first has question: 'Hi'" in str(raised.value)
    check(rows, tmp_path, source={"on_fault": {"unknown_shape": "drop"}})


def test_half_of_a_shape_beside_text_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="no known shape"):
        check([{"text": "a"}, {"text": "a", "instruction": "b"}], tmp_path)


def test_the_page_lists_the_shapes() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    lines = page.partition("| shape | columns |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [line.strip("| ").split(" | ") for line in lines]
    listed = [(name, tuple(re.findall(r"`(\w+)`", columns))) for name, columns, _ in cells]
    assert listed == [(shape.name, shape.columns) for shape in SHAPES]


def test_a_new_shape_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(row: Row) -> tuple[tuple[Message, ...], ...]:
        question = Message(role="user", content=row["question"])
        return ((question, Message(role="assistant", content=row["answer"])),)

    shape = RowShape(name="quiz", columns=("question", "answer"), parse=parse)
    row = {"question": "Hi", "answer": "yes"}
    with pytest.raises(RowError, match="no known shape"):
        check([row], tmp_path)
    monkeypatch.setattr(shapes, "SHAPES", (*SHAPES, shape))
    check([row], tmp_path)
    made = to_conversation(row, source=SOURCE, index=0)
    assert [message.content for message in made.messages] == ["Hi", "yes"]
    with pytest.raises(DataError, match=r"messages: 1 rows.*; quiz: 1 rows"):
        check([row, {"messages": [HI, YES]}], tmp_path)
    with pytest.raises(RowError, match=r"Expected messages; .*; quiz \[unknown_shape\]"):
        to_conversation({"riddle": "Hi"}, source=SOURCE, index=0)


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="</"), min_size=1).filter(
    lambda text: text.strip() == text and "\r" not in text and "think" not in text
)
TURNS = st.lists(st.tuples(WORDS, WORDS, st.none() | WORDS), min_size=1, max_size=4)


@given(turns=TURNS, system=st.none() | WORDS)
def test_a_conversation_is_the_same_in_every_shape(
    turns: list[tuple[str, str, str | None]], system: str | None
) -> None:
    thinking = all(trace for _, _, trace in turns)
    turns = [
        (asked, answer, trace if thinking and trace != answer else None)
        for asked, answer, trace in turns
    ]
    if not all(trace for _, _, trace in turns):
        turns = [(asked, answer, None) for asked, answer, _ in turns]
    made = [to_conversation(row, source=SOURCE, index=0) for row in spelt(turns, system)]
    assert all(entry == made[0] for entry in made[1:])
    spoken = [message.content for message in made[0].messages if message.role != "system"]
    assert spoken == [text for asked, answer, _ in turns for text in (asked, answer)]
    assert [message.thinking for message in made[0].messages if message.role == "assistant"] == [
        trace for _, _, trace in turns
    ]
    assert made[0].mode == ("think" if turns[0][2] else "no_think")


def spelt(turns: list[tuple[str, str, str | None]], system: str | None) -> list[dict[str, Any]]:
    """One conversation in each of the shapes."""

    def inline(answer: str, trace: str | None) -> str:
        return f"<think>\n{trace}\n</think>\n\n{answer}" if trace else answer

    openai, fields, parts, sharegpt = [], [], [], []
    for asked, answer, trace in turns:
        text = inline(answer, trace)
        user = {"role": "user", "content": asked}
        openai += [user, {"role": "assistant", "content": text}]
        fields += [user, {"role": "assistant", "content": answer, "reasoning_content": trace}]
        parts += [user, {"role": "assistant", "content": [{"type": "text", "text": text}]}]
        sharegpt += [{"from": "human", "value": asked}, {"from": "gpt", "value": text}]
    head = [{"role": "system", "content": system}] if system else []
    *past, (asked, answer, trace) = turns
    history = [[turn, inline(other, thought)] for turn, other, thought in past]
    alpaca = {"instruction": asked, "output": inline(answer, trace), "history": history}
    return [
        {"messages": head + openai},
        {"messages": json.dumps(head + fields)},
        {"messages": parts, "system": system},
        {"conversations": sharegpt, "system": system},
        {"prompt": head + openai[:-1], "completion": openai[-1:]},
        {"prompt": openai[:-1], "completion": inline(answer, trace), "system": system},
        {**alpaca, "system": system},
    ]


@given(asked=WORDS, better=WORDS, worse=WORDS, trace=st.none() | WORDS)
def test_a_pair_is_the_same_in_every_shape(
    asked: str, better: str, worse: str, trace: str | None
) -> None:
    def said(answer: str) -> str:
        return f"<think>\n{trace}\n</think>\n\n{answer}" if trace else answer

    if better == worse or trace in (better, worse):
        return
    user = {"role": "user", "content": asked}
    chosen, rejected = ({"role": "assistant", "content": said(item)} for item in (better, worse))
    field = [{"role": "assistant", "content": item, "thinking": trace} for item in (better, worse)]
    gpt = {"from": "gpt", "value": said(worse)}
    rows: list[dict[str, Any]] = [
        {"prompt": asked, "chosen": said(better), "rejected": said(worse)},
        {"prompt": [user], "chosen": [chosen], "rejected": [rejected]},
        {"prompt": asked, "chosen": [user, chosen], "rejected": [user, rejected]},
        {"chosen": [user, chosen], "rejected": [user, rejected]},
        {"prompt": [user], "chosen": field[:1], "rejected": field[1:]},
        {"conversations": [{"from": "human", "value": asked}], "chosen": chosen, "rejected": gpt},
        {"question": asked, "system": "", "chosen": said(better), "rejected": said(worse)},
    ]
    made = [to_pair(row, source=SOURCE, index=0) for row in rows]
    assert all(entry == made[0] for entry in made[1:])
    assert (made[0].prompt[0].content, made[0].chosen[0].content) == (asked, better)
    assert made[0].rejected[0] == Message(role="assistant", content=worse, thinking=trace)


def test_messages_in_a_text_column_are_messages_and_other_json_is_text() -> None:
    ours = to_conversation({"prompt": [HI], "completion": [YES]}, source=SOURCE, index=0)
    row = {"prompt": json.dumps([HI]), "completion": json.dumps([YES])}
    assert to_conversation(row, source=SOURCE, index=0) == ours
    pair = {"prompt": json.dumps([HI]), "chosen": "yes", "rejected": json.dumps([NO])}
    made = to_pair(pair, source=SOURCE, index=0)
    parts = (made.prompt, made.chosen, made.rejected)
    assert [[message.content for message in part] for part in parts] == [["Hi"], ["yes"], ["no"]]
    for text in ("[1, 2]", "[]", '[{"name": "f"}]', "[Hi]", '["role"]'):
        made = to_conversation({"prompt": text, "completion": text}, source=SOURCE, index=0)
        assert [message.content for message in made.messages] == [text, text]


@pytest.mark.parametrize("role", ["User", "HUMAN", "prompter"])
def test_roles_are_read_in_any_case(role: str) -> None:
    row = {"messages": [HI | {"role": role}, YES | {"role": "Assistant"}]}
    ours = to_conversation({"messages": [HI, YES]}, source=SOURCE, index=0)
    assert to_conversation(row, source=SOURCE, index=0) == ours
