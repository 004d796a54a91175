"""Contents, media and loss flags as several tools write them: read, or refused by a code."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from dualign.data.config import SourceConfig
from dualign.data.conversation import Message
from dualign.data.faults import RowError
from dualign.data.rows.loading import load_source
from dualign.data.rows.sources import to_conversation, to_pair

SOURCE = SourceConfig(path="rows.jsonl")
HI, YO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}
CALL = {"name": "look", "arguments": {"x": 1}}


def messages_of(row: dict[str, Any]) -> tuple[Message, ...]:
    return to_conversation(row, source=SOURCE, index=0).messages


def code_of(row: dict[str, Any]) -> str:
    with pytest.raises(RowError) as error:
        to_conversation(row, source=SOURCE, index=0)
    return error.value.code


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}, YO]}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "user", "content": [{"type": "text", "value": "Hi"}]},
        {"role": "user", "content": [{"type": "text", "content": "Hi"}]},
        {"role": "user", "content": [{"type": "text", "text": "Hi", "value": None}]},
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "H"}, {"type": "text", "value": "i"}],
        },
        {"role": "user", "content": [{"text": "Hi"}]},
        {"role": "user", "content": ["Hi"]},
        {"role": "user", "content": {"type": "text", "text": "Hi"}},
        {"role": "user", "parts": [{"text": "Hi"}]},
        {"role": "user", "value": "Hi"},
        {"role": "user", "text": "Hi"},
        {"from": "human", "value": "Hi"},
        {"from": "human", "content": "Hi"},
        {"from": "user", "text": "Hi"},
        {"from": "human", "value": [{"type": "text", "value": "Hi"}]},
        {"role": "user", "content": "Hi", "text": "Hi"},
        {"role": "user", "content": "Hi", "id": "m1", "created": "2025-01-01", "value": 3},
    ],
)
def test_the_text_of_a_turn_is_read_under_every_key_that_people_use(turn: dict[str, Any]) -> None:
    assert messages_of({"messages": [turn, YO]})[0] == Message(role="user", content="Hi")
    for role in ("system", "tool"):
        name = "role" if "role" in turn else "from"
        if role == "system":
            rest = [{**turn, name: role}, HI, YO]
            assert messages_of({"messages": rest})[0].content == "Hi"
        else:
            asked = {"role": "assistant", "tool_calls": [CALL]}
            rest = [HI, asked, {**turn, name: role}, YO]
            assert messages_of({"messages": rest})[2].content == "Hi"


@pytest.mark.parametrize(
    "turn",
    [
        {"content": [{"type": "text", "body": "Hi"}]},
        {"content": [{"type": "text", "text": "", "body": "Hi"}]},
        {"content": [{"type": "text", "text": "Hi", "value": "Ho"}]},
        {"content": [{"type": "text", "text": 4}]},
        {"content": [{"type": "text", "text": {"a": 1}}]},
        {"content": [{"type": "paragraph", "text": "Hi"}]},
        {"content": [4]},
        {"content": [{"type": "thinking", "note": "hm"}]},
        {"content": {"a": 1}},
        {"content": 4},
        {"body": "Hi"},
        {"content": None, "message": "Hi"},
        {"content": "Hi", "value": "Ho"},
        {"utterance": [{"type": "text", "text": "Hi"}]},
    ],
)
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_a_text_that_cannot_be_told_is_refused_for_every_role(
    turn: dict[str, Any], role: str
) -> None:
    turns = {
        "system": [{"role": role, **turn}, HI, YO],
        "user": [{"role": role, **turn}, YO],
        "assistant": [HI, {"role": role, **turn}],
        "tool": [HI, {"role": "assistant", "tool_calls": [CALL]}, {"role": role, **turn}, YO],
    }
    assert code_of({"messages": turns[role]}) == "bad_content"


def test_the_fault_lists_the_keys() -> None:
    with pytest.raises(RowError, match="with the keys type, body: expected its text under one of"):
        messages_of(user([{"type": "text", "body": "Hi"}]))
    with pytest.raises(RowError, match="with the keys role, body: its text may be in body"):
        messages_of({"messages": [{"role": "user", "body": "Hi"}, YO]})


@pytest.mark.parametrize(
    "answer",
    [
        {"content": [{"type": "thinking", "thinking": "why"}, {"type": "text", "text": "Yo"}]},
        {"content": [{"type": "reasoning", "value": "why"}, {"type": "text", "value": "Yo"}]},
        {"content": [{"type": "reasoning", "text": "why"}, {"type": "output_text", "text": "Yo"}]},
        {"content": [{"type": "thought", "content": "why"}, {"text": "Yo"}]},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "why"}]},
                {"type": "text", "text": "Yo"},
            ]
        },
        {"content": "Yo", "reasoning_content": "why"},
        {"content": "Yo", "thinking": "why", "reasoning_content": ""},
        {"content": "Yo", "reasoning": "why", "reasoning_content": "why"},
        {"content": "<think>why</think>Yo"},
        {"content": [{"type": "text", "text": "<think>why</think>Yo"}]},
    ],
)
def test_a_trace_is_read_under_every_name(answer: dict[str, Any]) -> None:
    made = messages_of({"messages": [HI, {"role": "assistant", **answer}]})[1]
    assert (made.thinking, made.content) == ("why", "Yo")


@pytest.mark.parametrize(
    ("turn", "code"),
    [
        ({"role": "assistant", "content": "Yo", "thinking": "a", "reasoning": "b"}, "double_think"),
        (
            {"role": "assistant", "content": [{"text": "Yo"}, {"type": "thinking", "text": "b"}]},
            "misplaced_think",
        ),
        (
            {
                "role": "assistant",
                "content": [{"type": "thinking", "text": "b"}, {"text": "Yo"}],
                "thinking": "a",
            },
            "double_think",
        ),
        ({"role": "user", "content": "Hi", "thinking": "a"}, "bad_content"),
        ({"role": "user", "content": [{"type": "thinking", "text": "a"}, "Hi"]}, "bad_content"),
        ({"role": "user", "content": "Hi", "tool_calls": [CALL]}, "bad_tools"),
        ({"role": "assistant", "content": "Yo", "function_calls": "look(x=1)"}, "bad_tools"),
        ({"role": "system", "content": "Be.", "functions": [{"name": "look"}]}, "bad_tools"),
        ({"role": ["user"], "content": "Hi"}, "unknown_role"),
    ],
)
def test_what_would_be_lost_is_refused(turn: dict[str, Any], code: str) -> None:
    turns = {"assistant": [HI, turn], "system": [turn, HI, YO]}
    assert code_of({"messages": turns.get(str(turn["role"]), [turn, YO])}) == code


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "1", **CALL}]},
        {
            "role": "assistant",
            "content": [{"type": "tool_call", "value": '{"name": "look", "arguments": {"x": 1}}'}],
        },
        {"role": "assistant", "content": None, "tool_calls": CALL},
        {"from": "function_call", "value": '[{"name": "look", "arguments": {"x": 1}}]'},
        {"role": "tool_call", "content": '{"name": "look", "arguments": {"x": 1}}'},
    ],
)
def test_calls_are_read_where_they_are(turn: dict[str, Any]) -> None:
    answer = messages_of({"messages": [HI, turn]})[1]
    assert answer.functions == [CALL] and answer.content == ""


def test_old_functions_are_tools() -> None:
    schema = {"name": "look", "parameters": {"type": "object"}}
    tool = {"type": "function", "function": schema}
    for more in (
        {"functions": [schema]},
        {"functions": [tool]},
        {"tools": [tool], "functions": []},
    ):
        made = to_conversation({"messages": [HI, YO], **more}, source=SOURCE, index=0)
        assert made.tools == (tool,)
    both = {"messages": [HI, YO], "tools": [tool], "functions": [{"name": "peek"}]}
    assert code_of(both) == "bad_tools"


IMAGE = {"type": "image_url", "image_url": {"url": "a.png"}}


@pytest.mark.parametrize(
    "row",
    [
        user([IMAGE, {"type": "text", "text": "What?"}]),
        user([{"type": "image"}, {"type": "text", "text": "What?"}]),
        user([{"type": "image", "image": "a.png"}]),
        user([{"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}]),
        user([{"type": "video", "video": "a.mp4"}, "What?"]),
        user([{"type": "file", "file": {"file_id": "x"}}, "What?"]),
        user([{"type": "text", "text": "What?", "image_url": "a.png"}]),
        user("<image>What?") | {"images": ["a.png"]},
        user("<image>What?") | {"image": {"bytes": b"x", "path": None}},
        user("<audio>What?") | {"audios": ["a.wav"]},
        user("<video>What?") | {"videos": ["a.mp4"]},
        {"messages": [{**HI, "images": ["a.png"]}, YO]},
        {"messages": [HI, {**YO, "audio": {"id": "x"}}]},
        {"prompt": "<image>What?", "completion": "Yo", "image_path": "a.png"},
        {"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nHi"}]},
    ],
)
def test_a_row_with_media_is_refused_by_its_code(row: dict[str, Any]) -> None:
    assert code_of(row) == "multimodal"


@pytest.mark.parametrize("name", ["image_1", "image2", "img", "picture_url", "audio_01"])
def test_numbered_columns_of_media_are_refused(name: str) -> None:
    assert code_of({"messages": [HI, YO], name: "a.png"}) == "multimodal"


def test_a_pair_with_media_is_refused_too() -> None:
    row = {"prompt": "What?", "chosen": "a", "rejected": "b", "images": ["a.png"]}
    with pytest.raises(RowError, match="the row has images") as error:
        to_pair(row, source=SOURCE, index=0)
    assert error.value.code == "multimodal"


@pytest.mark.parametrize("value", [None, [], "", [None], {}])
def test_empty_columns_of_media_are_nothing(value: Any) -> None:
    assert len(messages_of({"messages": [HI, YO], "images": value, "audio": value})) == 2


@pytest.mark.parametrize(
    ("flags", "trained"),
    [
        ({"train": False}, False),
        ({"train": True}, True),
        ({"training": False}, False),
        ({"trainable": 0}, False),
        ({"loss": False}, False),
        ({"loss": True, "weight": 1.0}, True),
        ({"loss_weight": 0.0}, False),
        ({"loss_scale": 1}, True),
        ({"weight": 0}, False),
        ({"weight": "0"}, False),
        ({"masked": True}, False),
        ({"masked": False}, True),
        ({"loss_mask": 0}, False),
        ({"loss_mask": 1}, True),
        ({"train_on": False}, False),
        ({"ignore": True}, False),
        ({"ignore_loss": 0}, True),
        ({"mask": None, "train": None, "loss": None}, True),
        ({"train": True, "weight": 0}, False),
    ],
)
def test_flags_leave_an_answer_out_of_the_loss(flags: dict[str, Any], trained: bool) -> None:
    row = {"messages": [HI, {**YO, **flags}, HI, YO]}
    assert [message.train for message in messages_of(row)[1::2]] == [trained, True]


@pytest.mark.parametrize(
    ("turn", "flags"),
    [
        (1, {"loss_weight": 0.5}),
        (1, {"weight": 2}),
        (1, {"loss_scale": -1}),
        (1, {"weight": "high"}),
        (1, {"train": [0, 1]}),
        (1, {"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]}),
        (0, {"train": True}),
        (0, {"training": True}),
        (0, {"weight": 0.5}),
    ],
)
def test_flags_that_cannot_be_honored_are_refused(turn: int, flags: dict[str, Any]) -> None:
    turns: list[dict[str, Any]] = [dict(HI), dict(YO)]
    turns[turn] |= flags
    assert code_of({"messages": turns}) == "loss_weight"


@pytest.mark.parametrize("flags", [{"loss": False}, {"weight": 0}, {"weight": 1}, {"train": False}])
def test_flags_of_other_turns_change_nothing(flags: dict[str, Any]) -> None:
    assert messages_of({"messages": [{**HI, **flags}, YO]})[0] == Message(role="user", content="Hi")


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"loss": 0.5}, "loss_weight"),
        ({"weights": [0, 1]}, "loss_weight"),
        ({"loss_mask": [0, 1]}, "loss_weight"),
        ({"loss": False}, "no_answer"),
        ({"weight": 0}, "no_answer"),
        ({"masked": True}, "no_answer"),
    ],
)
def test_columns_that_say_something_of_the_loss(columns: dict[str, Any], code: str) -> None:
    assert code_of({"messages": [HI, YO], **columns}) == code
    assert messages_of({"messages": [HI, YO], "loss": 1, "weight": 1.0, "train": True})


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_images_are_not_decoded_before_the_row_is_refused(
    tmp_path: Path, many: bool, streaming: bool
) -> None:
    image = {"bytes": b"no image at all", "path": None}
    row = {"messages": [HI, YO], "images" if many else "image": [image] if many else image}
    kind = datasets.List(datasets.Image()) if many else datasets.Image()
    text = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    features = datasets.Features(
        {"messages": datasets.List(text), "images" if many else "image": kind}
    )
    datasets.Dataset.from_list([row], features=features).to_parquet(tmp_path / "a.parquet")
    source = SourceConfig(path=str(tmp_path / "a.parquet"), streaming=streaming)
    (read,) = load_source(source)
    assert code_of(read) == "multimodal"


def test_a_system_text_beside_a_system_message_is_never_lost() -> None:
    first = {"role": "system", "content": "Be brief."}
    for system in (None, "", "Be brief.", " Be brief.\n"):
        texts = [
            turn.content.strip()
            for turn in messages_of({"messages": [first, HI, YO], "system": system})
        ]
        assert texts == ["Be brief.", "Hi", "Yo"]
    empty = {"messages": [{"role": "system", "content": ""}, HI, YO], "system": "Be brief."}
    assert messages_of(empty)[0].content == "Be brief."
    assert code_of({"messages": [first, HI, YO], "system": "Be kind."}) == "bad_content"
