"""A message that quotes a row can be read, however long the row's values are."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from dualign.data.config import SourceConfig
from dualign.data.rows.sources import to_conversation, to_pair
from dualign.errors import DataError

ROWS = SourceConfig(path="rows.jsonl")
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
USER = {"role": "user", "content": "Hi"}
SFT = [
    {"messages": [USER, {"role": "assistant", "content": "Yo"}], "mode": "no_think"},
    {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "Yo"}]}]},
    {"messages": [USER, {"role": "assistant", "reasoning_content": "Hm", "content": "Yo"}]},
    {
        "messages": [
            USER,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "2"},
        ],
        "tools": [TOOL],
    },
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]},
    {"prompt": "Hi", "completion": "Yo", "chat_template_kwargs": {"enable_thinking": False}},
    {"instruction": "Hi", "input": "x", "output": "Yo", "history": [["a", "b"]]},
    {"text": "Hi"},
]
PAIRS = [
    {"prompt": "Hi", "chosen": "Yo", "rejected": "No"},
    {"prompt": [USER], "chosen": [{"role": "assistant", "content": "Yo"}], "rejected": "No"},
]
LONG = [
    1,
    True,
    [],
    "x" * 5000,
    " " * 5000,
    ["x" * 2000] * 9,
    {"k" * 3000: "v" * 3000},
    "</think>" + "x" * 5000,
]


def with_value(value: Any, new: Any) -> Iterator[Any]:
    """The value with each of its parts replaced by the new one, in turn."""
    yield new
    if isinstance(value, dict):
        for key, item in value.items():
            yield from ({**value, key: changed} for changed in with_value(item, new))
        yield {**value, "x" * 5000: new}
    elif isinstance(value, list):
        for at, item in enumerate(value):
            for changed in with_value(item, new):
                yield [*value[:at], changed, *value[at + 1 :]]


@pytest.mark.parametrize("new", LONG, ids=lambda new: json.dumps(new)[:12])
def test_no_message_quotes_a_whole_value(new: Any) -> None:
    """Each part of a row is replaced in turn; what isn't taken is a DataError, never a traceback."""
    messages = []
    for parse, row in [
        *((to_conversation, row) for row in SFT),
        *((to_pair, row) for row in PAIRS),
    ]:
        for changed in with_value(row, new):
            if isinstance(changed, dict):
                try:
                    parse(changed, source=ROWS, index=3)
                except DataError as error:
                    messages.append(str(error))
    assert len(messages) > 9, "many of these rows are faulty"
    longest = max(messages, key=len)
    assert len(longest) < 1000, longest
