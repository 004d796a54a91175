"""Traces for rows with tools: a text stays a text, a call is compared as a tree, and neither passes for the other."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dualign.data.config import SourceConfig
from dualign.data.conversation import Conversation
from dualign.data.rows.sources import to_conversation
from dualign.data.tool_calls import calls_in, final_calls, same_calls
from dualign.sft.questions import as_problem, trace_questions
from dualign.sft.traces import run
from tests.generation.servers import Proxy, Reply, chat_reply
from tests.sft.sums import stage, write, written

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
    },
}
_Said = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]


def call(**arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "add", "arguments": arguments}}


def line(question: str, *turns: _Said) -> dict[str, Any]:
    """A row: turns are the assistant's calls, a tool's result, or the answer."""
    messages = [{"role": "user", "content": question}]
    for turn in turns:
        if not isinstance(turn, str):
            calls = [turn] if isinstance(turn, Mapping) else list(turn)
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        elif messages[-1]["role"] == "assistant":
            messages.append({"role": "tool", "content": turn})
        else:
            messages.append({"role": "assistant", "content": turn})
    return {"messages": messages, "tools": [ADD]}


LINES = [
    line("What is 1+2?", "3"),
    line("Add 4 and 5", call(x=4, y=5)),
    line("Add 2 and 2", call(x=2, y=2)),
    line("Add 7 and 1", call(x=7, y=1), "It is 8", "8"),
    line("Add 1 and 1, and 2 and 3", [call(x=1, y=1), call(x=2, y=3)]),
]
SAID: dict[str, Sequence[_Said]] = {
    "What is 1+2?": (call(x=3), "It is 3"),  # a number in a call is no answer
    "Add 4 and 5": ("It is 9", call(y=5.0, x=4)),
    "Add 2 and 2": (call(x=2, y=True), call(x=2), [call(x=2, y=2)] * 2),
    "Add 7 and 1": ("It is 8",),
    "Add 1 and 1, and 2 and 3": ([call(x=2, y=3), call(x=1, y=1)],),
}


def teacher() -> Proxy:
    """It says of each question what its list says in turn, and then the last again."""
    asked: dict[str, int] = {}

    def answer(body: dict[str, Any]) -> Reply:
        (question,) = (turn["content"] for turn in body["messages"] if turn["role"] == "user")
        question = question.partition("\n")[0]
        number = asked[question] = asked.get(question, -1) + 1
        said = SAID[question][min(number, len(SAID[question]) - 1)]
        if isinstance(said, str):
            return 200, {}, chat_reply(said, reasoning="Let me see.")
        calls = [said] if isinstance(said, Mapping) else said
        reply = chat_reply(None, "tool_calls", reasoning="It has to be called.", tool_calls=calls)
        return 200, {}, reply

    return Proxy(answer)


def rows(folder: Path, *lines: Mapping[str, Any]) -> Path:
    return write(folder / "rows.jsonl", lines)


def read_back(row: dict[str, Any]) -> Conversation:
    return to_conversation(row, source=SourceConfig(path="traces.jsonl"), index=0)


KEYS: dict[str, Any] = {"columns": {}, "expected": None, "tries": 3}


def test_a_text_and_a_call_get_traces_and_neither_passes_for_the_other(
    tmp_path: Path,
) -> None:
    with teacher().running() as proxy:
        asking = stage(proxy.address, rows(tmp_path, *LINES), **KEYS)
        outcome = run(asking, tmp_path, seed=1)
        asked = [body.body for body in proxy.asked]
    first, second, third, fourth, fifth = written(tmp_path)
    assert [row["mode"] for row in (first, second, fourth, fifth)] == ["think"] * 4
    assert first["messages"][-1]["content"] == "3"
    for row, of in zip((second, fourth, fifth), (1, 3, 4), strict=True):
        assert (
            read_back(row).messages[-1].tool_calls == read_back(LINES[of]).messages[-1].tool_calls
        )
    assert second["messages"][-1]["reasoning_content"] == "It has to be called."
    assert third["provenance"]["without_trace"] == "another_call"
    assert outcome.metrics["rejected"] == {"another_call": 3, "called_tool": 1, "no_call": 1}
    assert all(body["tools"] == [ADD] for body in asked)
    result = next(body["messages"] for body in asked if len(body["messages"]) > 1)
    assert result[1]["tool_calls"][0]["id"] == result[2]["tool_call_id"]
    assert result[1]["tool_calls"][0]["function"]["arguments"] == '{"x": 7, "y": 1}'


def test_the_hint_and_the_instruction_stand_in_the_users_turn(tmp_path: Path) -> None:
    keys = {**KEYS, "answer_first": True, "instruction": "Think first."}
    asking = stage("unused", rows(tmp_path, *LINES), **keys)
    questions, _ = trace_questions(asking, seed=0)
    turns = as_problem(asking, questions[3]).messages
    assert "known to be:\n8\n" in turns[0]["content"] and turns[0]["content"].endswith(
        "Think first."
    )
    assert turns[-1] == {"role": "tool", "content": "It is 8"}
    told = as_problem(asking, questions[1])
    assert "add(x=4, y=5)" in told.messages[0]["content"] and told.tools == (ADD,)


def test_rows_whose_tools_the_models_template_doesnt_print_arent_asked(
    learnt: Path, tmp_path: Path
) -> None:
    """With tools none of them would have a chance, and the answer without would be learnt as one with them."""
    blind = shutil.copytree(learnt, tmp_path / "blind")
    template = (blind / "chat_template.jinja").read_text()
    (blind / "chat_template.jinja").write_text("{% set tools = none %}" + template)
    plain = {"messages": line("What is 1+2?", "3")["messages"]}
    keys = {**KEYS, "temperature": 0.0, "tries": 1}
    run(stage(str(blind), rows(tmp_path, plain, LINES[0], LINES[3]), **keys), tmp_path, seed=1)
    assert [row["provenance"].get("without_trace") for row in written(tmp_path)] == [
        None, "tools", "tools",
    ]  # fmt: skip


def test_a_call_never_becomes_a_trace(tmp_path: Path) -> None:
    asking = stage("unused", rows(tmp_path, *LINES), **KEYS, trace="answer")
    questions, _ = trace_questions(asking, seed=0)
    assert [question.passed for question in questions] == ["", "tools", "tools", "", "tools"]


def test_calls_are_read_from_the_text_of_rows_and_models(tmp_path: Path) -> None:
    text = '<tool_call>\n{"name": "add", "arguments": {"x": 4, "y": 5}}\n</tool_call>'
    conversation, plain = read_back(line("Add 4 and 5", text)), read_back(LINES[0])
    assert same_calls(final_calls(conversation), final_calls(read_back(LINES[1])))
    assert final_calls(plain) == () and calls_in("It is 3", plain) == []
    assert calls_in("<tool_call>add 3</tool_call>", plain) is None, "a call, but of what?"
    without_tools = replace(conversation, tools=())
    assert final_calls(without_tools) == (), "an answer about tags is none"


@pytest.mark.parametrize(
    ("arguments", "same"),
    [
        ({"x": 1, "y": [1, {"z": None}]}, True),
        ({"y": [1.0, {"z": None}], "x": 1.0}, True),
        ({"x": True, "y": [1, {"z": None}]}, False),
        ({"x": "1", "y": [1, {"z": None}]}, False),
        ({"x": 1, "y": [{"z": None}, 1]}, False),
        ({"x": 1, "y": [1, {}]}, False),
        ({"x": 1}, False),
    ],
)
def test_arguments_are_compared_as_json(arguments: dict[str, Any], same: bool) -> None:
    expected, other = (
        final_calls(read_back(line("Add", call(**values))))
        for values in ({"x": 1, "y": [1, {"z": None}]}, arguments)
    )
    assert same_calls(other, expected) is same
    assert not same_calls([*other, *other], expected), "once is not twice"
