"""What is sent to an endpoint, and the forms in which answers come."""

import json

import pytest

from dualign.generation.config import Endpoint
from dualign.generation.dispatch import _retry_after
from dualign.generation.endpoint import EndpointResponder
from dualign.generation.samples import AnswerRecord
from dualign.generation.sampling import Sampling
from dualign.generation.thinking import split
from dualign.generation.wire import (
    Pieces,
    UnusableReplyError,
    build_prompt,
    read_reply,
    request_body,
)
from dualign.switch import ENABLE_THINKING, Switch

URL = "http://127.0.0.1:9/v1"
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def reply(message, finish="stop", **fields):
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return json.dumps({"choices": [choice], **fields})


@pytest.mark.parametrize(
    ("way", "think", "no_think"),
    [
        (
            "enable_thinking",
            {"chat_template_kwargs": {"enable_thinking": True}},
            {"chat_template_kwargs": {"enable_thinking": False}},
        ),
        (
            "thinking",
            {"chat_template_kwargs": {"thinking": True}},
            {"chat_template_kwargs": {"thinking": False}},
        ),
        ("reasoning_effort", {"reasoning_effort": "high"}, {"reasoning_effort": "low"}),
        (
            Switch(
                think={"body": {"reasoning": {"enabled": True}}},
                no_think={"body": {"reasoning": {"enabled": False}}},
            ),
            {"reasoning": {"enabled": True}},
            {"reasoning": {"enabled": False}},
        ),
    ],
    ids=["enable_thinking", "thinking", "reasoning_effort", "fields"],
)
def test_the_switch_of_a_family_goes_where_its_server_reads_it(way, think, no_think):
    subject = EndpointResponder(Endpoint(url=URL, name="m", mode_switch=way), label="m")
    for mode, fields in (("think", think), ("no_think", no_think)):
        prompt = subject.prompt(ASKED, mode, None)
        assert dict(prompt.fields) == fields
        assert list(prompt.messages) == ASKED


@pytest.mark.parametrize(("way", "role"), [("system", "system"), ("user", "user")])
def test_words_go_into_the_system_or_user_text(way, role):
    subject = EndpointResponder(Endpoint(url=URL, name="m", mode_switch=way), label="m")
    for mode in ("think", "no_think"):
        prompt = subject.prompt(ASKED, mode, ENABLE_THINKING)  # the endpoint's own comes first
        texts = {turn["role"]: turn["content"] for turn in prompt.messages}
        assert f"/{mode}" in texts.pop(role).split()
        assert "/" not in str(texts)
        assert prompt.fields == {}


def test_a_model_without_modes_is_asked_in_one_way():
    subject = EndpointResponder(Endpoint(url=URL, name="m", mode_switch="none"), label="m")
    assert subject.without_modes
    assert subject.prompt(ASKED, "think", None).text == subject.prompt(ASKED, "no_think", None).text


def test_a_request_holds_settings_seed_tools_and_other_fields():
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    prompt = build_prompt(ASKED, "think", ENABLE_THINKING, [tool])
    body = {"top_k": 20, "chat_template_kwargs": {"date": "today"}, "temperature": None}
    endpoint = Endpoint(url=URL, body=body, limit_field="max_completion_tokens")
    warm = Sampling(max_new_tokens=9, temperature=0.5, top_p=0.9)
    assert request_body(endpoint, "m", prompt, warm, 2**31 + 3) == {
        "model": "m",
        "messages": ASKED,
        "max_completion_tokens": 9,
        "chat_template_kwargs": {"enable_thinking": True, "date": "today"},
        "tools": [tool],
        "top_p": 0.9,
        "seed": 3,
        "top_k": 20,
    }
    greedy = request_body(Endpoint(url=URL), "m", prompt, Sampling(max_new_tokens=9), 3)
    assert "seed" not in greedy and greedy["temperature"] == 0


@pytest.mark.parametrize("value", [{"reasoning_effort": "low"}, {"reasoning_effort": None}])
def test_no_field_of_the_body_changes_the_mode(value):
    endpoint = Endpoint(url=URL, name="m", mode_switch="reasoning_effort", body=value)
    prompt = EndpointResponder(endpoint, label="m").prompt(ASKED, "think", None)
    sent = request_body(endpoint, "m", prompt, Sampling(max_new_tokens=9), 3)
    assert sent["reasoning_effort"] == "high"


@pytest.mark.parametrize(
    "message",
    [
        {"content": "So.", "reasoning_content": "Since."},
        {"content": "So.", "reasoning": "Since."},
        {"content": "\n\nSo.", "reasoning": "Since.\n", "reasoning_content": None},
        {"content": "<think>\nSince.\n</think>\n\nSo."},
        {"content": "Since.\n</think>\n\nSo."},  # the server's template opened the block
        {"content": [{"type": "text", "text": "So."}], "reasoning_content": "Since."},
    ],
)
def test_traces_come_in_many_forms_and_become_the_same(message):
    text = read_reply(reply(message), "think").text
    parts = split("", text, mode="think", finished=True)
    assert (parts.thinking, parts.answer) == ("Since.", "So.")
    assert parts.closed and not parts.leaked


def test_half_a_character_becomes_a_sign_that_can_be_written():
    text = reply({"content": "So \ud83d", "reasoning": "Since \ude00."})
    assert read_reply(text, "think").text == "<think>\nSince \ufffd.\n</think>\n\nSo \ufffd"
    whole = reply({"content": "So \U0001f600", "reasoning": None})
    assert read_reply(whole, "no_think").text == "So \U0001f600"


def test_a_trace_in_no_think_mode_is_a_leak_and_an_empty_one_is_none():
    leak = read_reply(reply({"content": "So.", "reasoning": "Since."}), "no_think").text
    assert split("", leak, mode="no_think", finished=True).leaked
    plain = read_reply(reply({"content": "So.", "reasoning_content": "\n"}), "no_think").text
    assert plain == "So."


def test_an_answer_that_the_limit_cut_is_not_finished():
    inside = read_reply(reply({"content": "", "reasoning": "Sin"}, "length"), "think")
    parts = split("", inside.text, mode="think", finished=inside.finished)
    assert (parts.thinking, parts.answer, parts.cut_in_think) == ("Sin", "", True)
    later = read_reply(reply({"content": "S", "reasoning": "Since."}, "length"), "think")
    parts = split("", later.text, mode="think", finished=later.finished)
    assert not later.finished
    assert (parts.thinking, parts.answer, parts.cut_in_think) == ("Since.", "S", False)


CALL = '<tool_call>\n{"name": "add", "arguments": {"x": [1, 2]}}\n</tool_call>'


@pytest.mark.parametrize("arguments", ['{"x": [1, 2]}', {"x": [1, 2]}])
def test_calls_come_as_a_field_and_become_text_after_the_trace(arguments):
    function = {"name": "add", "arguments": arguments}
    message = {"content": None, "reasoning": "Since.", "tool_calls": [{"function": function}] * 2}
    generation = read_reply(reply(message, "tool_calls"), "think")
    parts = split("", generation.text, mode="think", finished=generation.finished)
    assert (parts.thinking, parts.answer) == ("Since.", f"{CALL}\n{CALL}")
    assert generation.finished and not parts.leaked
    with_words = read_reply(reply({**message, "content": "Wait."}), "no_think").text
    assert with_words.endswith(f"Wait.\n{CALL}\n{CALL}")


def test_a_streamed_call_is_put_together_from_its_pieces():
    first = {"index": 0, "id": "a", "function": {"name": "add", "arguments": ""}}
    rest = [{"index": 0, "function": {"arguments": text}} for text in ('{"x": ', "[1, 2]}")]
    deltas = [{"content": "Wait."}, *({"tool_calls": [piece]} for piece in (first, *rest))]
    pieces = Pieces()
    for delta in deltas:
        pieces.put({"choices": [{"delta": delta}]})
    pieces.put({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]})
    assert read_reply(pieces.reply(), "no_think").text == f"Wait.\n{CALL}"


def test_calls_are_sent_with_an_id_each_and_their_arguments_as_text():
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": [1, 2]}}}
    turns = [
        *ASKED,
        {"role": "assistant", "content": "", "tool_calls": [call, {**call, "id": "mine"}]},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "4"},
    ]
    sent = build_prompt(turns, "think", ENABLE_THINKING).messages
    assert [call["id"] for call in sent[2]["tool_calls"]] == ["call_0", "mine"]
    assert [turn["tool_call_id"] for turn in sent[3:]] == ["call_0", "mine"]
    assert sent[2]["tool_calls"][0]["function"]["arguments"] == '{"x": [1, 2]}'
    assert "id" not in call, "the row stays as it is"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (reply({"content": None, "tool_calls": [{"name": "add"}]}, "tool_calls"), "garbage"),
        (reply({"content": None, "tool_calls": 3}, "tool_calls"), "garbage"),
        ("<html>", "garbage"),
        ("{}", "garbage"),
        ("[]", "garbage"),
        ('{"choices": []}', "garbage"),
        ('{"choices": [{"message": {"content": 3}, "finish_reason": "stop"}]}', "garbage"),
        ('{"error": {"message": "no"}}', "error in the reply"),
        (reply({"content": "x"}, "content_filter"), "finish_reason content_filter"),
        (reply({"content": "x"}, None), "finish_reason None"),
        (reply({"content": "x"}, ["stop"]), "finish_reason .'stop'."),
        ("[" * 100_000, "garbage"),
    ],
)
def test_what_is_no_answer_is_refused_with_a_reason(text, reason):
    with pytest.raises(UnusableReplyError, match=reason):
        read_reply(text, "think")


def test_tokens_of_the_trace_are_the_server_s_or_a_share_by_length():
    usage = {"prompt_tokens": 5, "completion_tokens": 10}
    detailed = {**usage, "completion_tokens_details": {"reasoning_tokens": 8}}
    assert read_reply(reply({"content": "x"}, usage=detailed), "think").usage == {
        "prompt": 5,
        "completion": 10,
        "reasoning": 8,
    }
    assert read_reply(reply({"content": "x"}), "think").usage is None
    # A server that counts the trace in the total alone.
    apart = {**detailed, "completion_tokens": 2, "total_tokens": 15}
    assert read_reply(reply({"content": "x"}, usage=apart), "think").usage["completion"] == 10


def test_a_trace_that_is_counted_but_not_shown_is_no_part_of_the_answer():
    subject = EndpointResponder(Endpoint(url=URL, name="m"), label="m")
    usage = {"prompt": 5, "completion": 10, "reasoning": 8}
    record = AnswerRecord(key="k", generated="So.", finished=True, usage=usage)
    hidden = split("", "So.", mode="think", finished=True)
    assert subject.tokens(hidden, record) == (8, 2)
    plain = AnswerRecord(key="k", generated="So.", finished=True, usage={**usage, "reasoning": 0})
    assert subject.tokens(hidden, plain) == (0, 10)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "Thu, 01 Jan 2026 00:00:00 GMT"}, 0.0),  # long ago
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_a_server_says_in_many_ways_how_long_to_wait(headers, seconds):
    assert _retry_after(headers) == seconds
