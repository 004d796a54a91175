"""Small files in the forms that tools and sets publish: what comes in, and by which code the rest is refused.

Each row is written as JSON lines and as Parquet, and read from both.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualign.data.config import SourceConfig
from dualign.data.conversation import Conversation
from dualign.data.faults import RowError
from dualign.data.rows.loading import sample_rows
from dualign.data.rows.parser import RowParser
from dualign.data.rows.text_rules import NO_RULES

Row = dict[str, Any]
ASK = {"role": "user", "content": "Weather in Oslo and Rome?"}
DONE = {"role": "assistant", "content": "Rain and sun."}
SCHEMA = {
    "name": "weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
TOOL = {"type": "function", "function": SCHEMA}
OSLO, ROME = {"city": "Oslo"}, {"city": "Rome"}
HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


def call(identity: str, arguments: Any) -> Row:
    return {
        "id": identity,
        "type": "function",
        "function": {"name": "weather", "arguments": arguments},
    }


def result(identity: str, text: str, **more: Any) -> Row:
    return {"role": "tool", "tool_call_id": identity, "content": text, **more}


def turns(*messages: Row, **more: Any) -> Row:
    return {"messages": [ASK, *messages], **more}


def line(who: str, text: str) -> Row:
    return {"from": who, "value": text}


CALLS: dict[str, tuple[Row, str]] = {
    "OpenAI, two calls at once": (
        turns(
            {"role": "assistant", "tool_calls": [call("a", json.dumps(OSLO)), call("b", "{}")]},
            result("a", "rain"),
            result("b", "sun"),
            DONE,
            tools=[TOOL],
            parallel_tool_calls=True,
        ),
        "in",
    ),
    "Mistral": (
        turns(
            {"role": "assistant", "content": "", "tool_calls": [call("TX92Jm8Zi", "{}")]},
            result("TX92Jm8Zi", "rain"),
            DONE,
            tools=[TOOL],
        ),
        "in",
    ),
    "OpenAI's functions": (
        turns(
            {"role": "assistant", "function_call": {"name": "weather", "arguments": "{}"}},
            {"role": "function", "name": "weather", "content": "rain"},
            DONE,
            functions=[SCHEMA],
        ),
        "in",
    ),
    "TRL": (
        turns(
            {"role": "assistant", "tool_calls": [call("a", ROME)]},
            {"role": "tool", "name": "weather", "content": "sun"},
            DONE,
            tools=[TOOL],
        ),
        "in",
    ),
    "LLaMA-Factory": (
        {
            "conversations": [
                line("human", "Weather?"),
                line("function_call", json.dumps({"name": "weather", "arguments": OSLO})),
                line("observation", "rain"),
                line("gpt", "Rain."),
            ],
            "tools": json.dumps([SCHEMA]),
        },
        "in",
    ),
    "LLaMA-Factory, two calls at once": (
        {
            "conversations": [
                line("human", "Weather?"),
                line("function_call", json.dumps([{"name": "weather", "arguments": OSLO}] * 2)),
                line("observation", "rain"),
                line("gpt", "Rain."),
            ],
            "tools": json.dumps([SCHEMA]),
        },
        "in",
    ),
    "ms-swift": (
        turns(
            {"role": "tool_call", "content": json.dumps({"name": "weather", "arguments": OSLO})},
            {"role": "tool_response", "content": "rain"},
            DONE,
            tools=json.dumps([TOOL]),
        ),
        "in",
    ),
    "Hermes, calls as text": (
        {
            "conversations": [
                line("system", f"<tools>{json.dumps(TOOL)}</tools>"),
                line("human", "Weather?"),
                line("gpt", HERMES),
                line("tool", "<tool_response>rain</tool_response>"),
                line("gpt", "Rain."),
            ]
        },
        "in",
    ),
    "ToolACE, calls as Python": (
        {
            "system": "You call functions.",
            "conversations": [
                line("user", "Weather?"),
                line("assistant", '[Weather API(city="Oslo"), Weather API(city="Rome")]'),
                line("tool", '[{"name": "Weather API", "results": {}}]'),
                line("assistant", "Rain."),
            ],
        },
        "in",
    ),
    "Llama 3.1, parameters": (
        turns({"role": "assistant", "tool_calls": [{"name": "weather", "parameters": OSLO}]}),
        "in",
    ),
    "Anthropic, calls as parts": (
        turns(
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "a", "name": "weather", "input": OSLO}],
            }
        ),
        "in",
    ),
    "Anthropic, results as parts": (
        turns(
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "a", "name": "weather", "input": OSLO}],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "a", "content": "rain"}],
            },
            DONE,
        ),
        "bad_content",
    ),
    "Tulu, calls as a text of their own": (
        turns({"role": "assistant", "content": "Look.", "function_calls": 'weather(city="Oslo")'}),
        "bad_tools",
    ),
    "Glaive": (
        {"system": "SYSTEM: You call functions.", "chat": "USER: Weather?\n\nASSISTANT: Rain."},
        "unknown_shape",
    ),
}
CONTENTS: dict[str, tuple[Row, str]] = {
    "OpenAI parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, DONE]},
        "in",
    ),
    "LLaMA-Factory v1": (
        {
            "messages": [
                {"role": "system", "content": [{"type": "text", "value": "Be brief."}]},
                {"role": "user", "content": [{"type": "text", "value": "Hi"}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "reasoning", "value": "why"},
                        {"type": "text", "value": "Yo"},
                    ],
                },
            ]
        },
        "in",
    ),
    "Mistral's thinking": (
        turns(
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "why"}]},
                    {"type": "text", "text": "Yo"},
                ],
            }
        ),
        "in",
    ),
    "OpenAI responses": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                {"role": "assistant", "content": [{"type": "output_text", "text": "Yo"}]},
            ]
        },
        "in",
    ),
    "gpt-oss's thinking": (turns({**DONE, "thinking": "why"}), "in"),
    "DeepSeek's reasoning_content": (turns({**DONE, "reasoning_content": "why"}), "in"),
    "OpenRouter's reasoning": (turns({**DONE, "reasoning": "why"}), "in"),
    "from with content": (
        {
            "conversations": [
                {"from": "system", "content": "Be brief."},
                {"from": "human", "content": "Hi"},
                {"from": "gpt", "content": "Yo"},
            ]
        },
        "in",
    ),
    "Gemini's parts under messages": (
        {
            "messages": [
                {"role": "user", "parts": [{"text": "Hi"}]},
                {"role": "model", "parts": [{"text": "Yo"}]},
            ]
        },
        "in",
    ),
    "a text under another key": (
        {"messages": [{"role": "user", "content": [{"type": "text", "body": "Hi"}]}, DONE]},
        "bad_content",
    ),
    "a message under another key": (
        {"messages": [{"role": "user", "utterance": "Hi"}, DONE]},
        "bad_content",
    ),
    "a refusal": (
        turns({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}),
        "bad_content",
    ),
}
WEIGHTS: dict[str, tuple[Row, str]] = {
    "OpenAI and Mistral": (turns({**DONE, "weight": 0}, ASK, {**DONE, "weight": 1}), "in"),
    "ms-swift, loss": (turns({**DONE, "loss": False}, ASK, {**DONE, "loss": True}), "in"),
    "ms-swift, loss_scale": (
        turns({**DONE, "loss_scale": 0.0}, ASK, {**DONE, "loss_scale": 1.0}),
        "in",
    ),
    "LLaMA-Factory v1": (
        turns({**DONE, "loss_weight": 0.0}, ASK, {**DONE, "loss_weight": 1.0}),
        "in",
    ),
    "axolotl, training": (
        turns({**DONE, "training": False}, ASK, {**DONE, "training": True}),
        "in",
    ),
    "axolotl, train": (turns({**DONE, "train": False}, ASK, DONE), "in"),
    "masked": (turns({**DONE, "masked": True}, ASK, DONE), "in"),
    "a weight of half": (turns({**DONE, "loss_weight": 0.5}), "loss_weight"),
    "axolotl, spans": (
        turns({**DONE, "train_detail": [{"begin_offset": 0, "end_offset": 3, "train": False}]}),
        "loss_weight",
    ),
    "axolotl, a user turn": ({"messages": [{**ASK, "train": True}, DONE]}, "loss_weight"),
    "a weight for each turn": (turns(DONE, weights=[0, 1]), "loss_weight"),
    "a row's weight": (turns(DONE, loss_weight=0.3), "loss_weight"),
    "a row left out": (turns(DONE, loss=False), "no_answer"),
}
MEDIA: dict[str, tuple[Row, str]] = {
    name: (row, "multimodal")
    for name, row in {
        "OpenAI": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]}, DONE]},
        "TRL": {
            "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}, DONE],
            "images": [{"bytes": None, "path": "a.png"}],
        },
        "Qwen": {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}, DONE]},
        "OpenAI, sound": {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x"}}]}, DONE]},
        "LLaMA-Factory": turns(DONE, images=["a.png"]),
        "LLaMA-Factory, sound": turns(DONE, audios=["a.wav"]),
        "LLaMA-Factory, film": turns(DONE, videos=["a.mp4"]),
        "LLaVA": {"image": "a.jpg", "conversations": [line("human", "<image>\nWhat?"), line("gpt", "A tree.")]},
        "ms-swift": turns(DONE, images=[{"path": "a.png", "bytes": None}]),
        "Ollama": {"messages": [{**ASK, "images": ["aGVsbG8="]}, DONE]},
        "prompt and completion": {"prompt": "<image>What?", "completion": "A tree.", "image": "a.png"},
        "Alpaca": {"instruction": "What?", "output": "A tree.", "image_path": "a.png"},
    }.items()
}  # fmt: skip
TABLE = {
    f"{kind}: {name}": case
    for kind, cases in (
        ("calls", CALLS),
        ("contents", CONTENTS),
        ("weights", WEIGHTS),
        ("media", MEDIA),
    )
    for name, case in cases.items()
}


def outcome(path: Path) -> tuple[str, Any]:
    """What becomes of the second row of a file: "in" or its code; its turns and tools."""
    source = SourceConfig(path=str(path))
    sampled = sample_rows(source, seed=1, number=0, base=None)
    parser = RowParser(
        source=source,
        supervise="assistant",
        row_type="conversation",
        rules=NO_RULES,
        structs=sampled.structs,
    )
    try:
        parsed = parser(sampled.stored[1], 1)
    except RowError as error:
        return error.code, None
    assert isinstance(parsed, Conversation)
    return "in", (parsed.messages, parsed.tools, parsed.mode)


@pytest.mark.parametrize("case", TABLE)
def test_a_published_form_comes_in_or_is_refused_by_its_code(case: str, tmp_path: Path) -> None:
    row, expected = TABLE[case]
    (tmp_path / "a.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    code, parsed = outcome(tmp_path / "a.jsonl")
    assert code == expected
    try:
        table = pa.Table.from_pylist([row, row])
    except pa.ArrowInvalid:  # contents that are text here and parts there have no column
        assert any(isinstance(turn.get("content"), list) for turn in row["messages"])
    else:
        pq.write_table(table, tmp_path / "a.parquet")
        assert outcome(tmp_path / "a.parquet") == (code, parsed)
    if code == "in":
        messages, tools, _ = parsed
        assert all(turn.content or turn.tool_calls for turn in messages)
        assert bool(tools) == bool(row.get("tools") or row.get("functions"))


def test_ten_files_or_more_of_each_kind() -> None:
    counts = {
        kind: Counter(
            expected == "in" for name, (_, expected) in TABLE.items() if name.startswith(kind)
        )
        for kind in ("calls", "contents", "weights", "media")
    }
    assert {kind: (count[True], count[False]) for kind, count in counts.items()} == {
        "calls": (11, 3),
        "contents": (9, 3),
        "weights": (7, 6),
        "media": (0, 12),
    }
