"""Rows that contradict themselves are refused with a code; rows that don't are left alone."""

from typing import Any

import pytest

from dualign.data.config import SourceConfig
from dualign.data.conversation import Message
from dualign.data.faults import RowError, RowFault
from dualign.data.rows.sources import to_conversation, to_pair
from dualign.data.rows.traces import split_trace

ROWS = SourceConfig(path="rows.jsonl")


def chat(answer: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


def code_of(row: dict[str, Any], source: SourceConfig = ROWS) -> str:
    with pytest.raises(RowError) as raised:
        to_conversation(row, source=source, index=7)
    assert "rows, row 7:" in str(raised.value)
    return raised.value.code


TRACE = "<think>\nwhy\n</think>\n\nyes"


@pytest.mark.parametrize(
    ("row", "source", "code"),
    [
        (chat(TRACE, mode="no_think"), ROWS, "no_think_with_trace"),
        (chat(TRACE, chat_template_kwargs={"enable_thinking": False}), ROWS, "no_think_with_trace"),
        (chat(TRACE), SourceConfig(path="rows", mode="no_think"), "no_think_with_trace"),
        (chat("yes", mode="think"), ROWS, "think_without_trace"),
        (chat("<think>\n\n</think>\n\nyes", mode="think"), ROWS, "think_without_trace"),
        (chat("<think>\nwhy"), ROWS, "unclosed_think"),
        (chat("why\n</think>\nyes"), ROWS, "unopened_think"),
        (chat("yes <think>why</think>"), ROWS, "misplaced_think"),
        (chat("<think>a<think>b</think></think>c"), ROWS, "nested_think"),
        (chat("<think>a</think><think>b</think>c"), ROWS, "double_think"),
        (chat("<think>\nwhy\n</think>\n\n"), ROWS, "empty_answer"),
        (chat("  "), ROWS, "empty_answer"),
        (chat("yes", mode="fast"), ROWS, "unknown_mode"),
        (chat("yes", chat_template_kwargs={"enable_thinking": "no"}), ROWS, "unknown_mode"),
        (
            chat("yes", mode="no_think"),
            SourceConfig(path="rows", mode="think"),
            "mode_contradiction",
        ),
        (
            chat("yes", mode="think", chat_template_kwargs={"enable_thinking": False}),
            ROWS,
            "mode_contradiction",
        ),
        ({"messages": [{"role": "user", "content": "Hi"}]}, ROWS, "no_answer"),
        ({"messages": [{"role": "narrator", "content": "Hi"}]}, ROWS, "unknown_role"),
        ({"messages": []}, ROWS, "empty_row"),
        ({"question": "Hi"}, ROWS, "unknown_shape"),
        ({"text": "Once upon a time"}, ROWS, "plain_text"),
        (chat("yes", tools="[{"), ROWS, "bad_tools"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(
    row: dict[str, Any], source: SourceConfig, code: str
) -> None:
    assert code_of(row, source) == code


def test_a_trace_in_content_and_in_a_field_is_a_double_trace() -> None:
    row = {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": TRACE, "reasoning_content": "why"},
        ]
    }
    assert code_of(row) == "double_think"


def test_a_flag_in_the_system_message_must_agree_with_enable_thinking() -> None:
    row = chat(TRACE, chat_template_kwargs={"enable_thinking": True})
    row["messages"].insert(0, {"role": "system", "content": "Be brief. /no_think"})
    assert code_of(row) == "mode_contradiction"


def test_a_flag_inside_a_word_is_no_flag() -> None:
    row = chat("yes")
    row["messages"].insert(0, {"role": "system", "content": "See docs/thinking.md and a/think."})
    assert to_conversation(row, source=ROWS, index=0).mode == "no_think"


@pytest.mark.parametrize("field", ["reasoning_content", "thinking", "reasoning"])
def test_a_trace_is_taken_from_its_field_and_tells_the_mode(field: str) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "yes", field: " why\n"},
        ]
    }
    made = to_conversation(row, source=ROWS, index=0)
    assert made.mode == "think"
    assert made.messages[1] == Message(role="assistant", content="yes", thinking="why")


def test_only_the_last_turn_needs_a_trace_when_only_it_is_supervised() -> None:
    row = {"messages": [*chat("yes")["messages"], *chat(TRACE)["messages"]], "mode": "think"}
    assert code_of(row) == "think_without_trace"
    made = to_conversation(row, source=ROWS, index=0, supervise="last")
    assert [message.thinking for message in made.messages] == [None, None, None, "why"]


def test_an_untrained_turn_may_lack_a_trace() -> None:
    row = {"messages": [*chat("yes")["messages"], *chat(TRACE)["messages"]], "mode": "think"}
    row["messages"][1]["train"] = False
    assert [message.train for message in to_conversation(row, source=ROWS, index=0).messages][
        1
    ] is False


def test_mid_training_keeps_contents_as_they_are() -> None:
    made = to_conversation(chat("a <think>b"), source=ROWS, index=0, supervise="all")
    assert (made.messages[1].content, made.mode) == ("a <think>b", "think")


def test_split_trace_of_an_empty_block_is_no_trace() -> None:
    assert split_trace("<think>\n\n</think>\n\nyes") == (None, "yes")
    assert split_trace("yes") == (None, "yes")
    assert split_trace("\n<think>why</think>yes") == ("why", "yes")
    with pytest.raises(RowFault, match="without </think>"):
        split_trace("<think>")


def pair_code(row: dict[str, Any]) -> str:
    with pytest.raises(RowError) as raised:
        to_pair(row, source=ROWS, index=0)
    return raised.value.code


def test_pairs_that_contradict_themselves_are_refused() -> None:
    assert pair_code({"prompt": "Hi", "chosen": TRACE, "rejected": "no"}) == "pair_modes_differ"
    assert pair_code({"prompt": "Hi", "chosen": "yes", "rejected": "yes"}) == "identical_pair"
    assert pair_code({"prompt": "Hi", "chosen": "yes", "rejected": " "}) == "empty_answer"
    assert pair_code({"prompt": "Hi", "chosen": "yes"}) == "unknown_shape"
    assert pair_code({"chosen": "yes", "rejected": "no"}) == "no_answer"
    two_turns = [*chat("no")["messages"], *chat("never")["messages"]]
    row = {"chosen": chat("yes")["messages"], "rejected": two_turns}
    assert pair_code(row) == "not_one_answer"


def test_errors_survive_the_way_back_from_a_worker() -> None:
    import pickle

    error = RowError("too_long", "9 tokens", source="s", row=3, mode="think")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.code, again.row, again.mode) == (str(error), "too_long", 3, "think")
