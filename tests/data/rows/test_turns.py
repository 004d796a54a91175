"""Turns out of order, results without a call, and texts that a tokenizer or a template misreads."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dualign.data.config import SourceConfig
from dualign.data.faults import RowError
from dualign.data.rows.sources import to_conversation
from dualign.data.rows.text_rules import NO_RULES, TextRules, text_rules, trim_control_tokens
from dualign.data.text.template import load_template

SOURCE = SourceConfig(path="r")
HI, YES = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}
RESULT = {"role": "tool", "content": "2"}
F = {"type": "function", "function": {"name": "f"}}


def call(*names: str, content: str = "") -> dict[str, Any]:
    calls = [{"function": {"name": name, "arguments": "{}"}} for name in names]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def said(content: str, role: str = "assistant") -> dict[str, Any]:
    return {"role": role, "content": content}


def fault(*messages: dict[str, Any], rules: TextRules = NO_RULES, **more: Any) -> str | None:
    try:
        to_conversation({"messages": list(messages), **more}, source=SOURCE, index=0, rules=rules)
    except RowError as error:
        return error.code
    return None


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([HI, YES, HI, YES], None),
        ([said("Be brief.", "system"), HI, YES], None),
        ([YES, HI, YES], "assistant_first"),
        ([said("Be brief.", "system"), YES], "assistant_first"),
        ([HI, HI, YES], "same_role_twice"),
        ([HI, YES, YES], "same_role_twice"),
        ([HI, YES, said("Be brief.", "system"), HI, YES], "late_system"),
        ([said(" \n", "user"), YES], "empty_user"),
        ([HI, call("f"), RESULT, YES], None),
        ([HI, call("f", "f"), RESULT, RESULT, YES], None),
        ([HI, call("f"), RESULT, RESULT, YES], "tool_result_without_call"),
        ([HI, YES, RESULT, YES], "tool_result_without_call"),
        ([RESULT, HI, YES], "tool_result_without_call"),
        ([HI, said('<tool_call>\n{"name": "f"}\n</tool_call>'), RESULT, YES], None),
        ([HI, said('{"name": "f", "arguments": {}}'), RESULT, YES], None),
        ([HI, said("{yes"), RESULT, YES], "tool_result_without_call"),
    ],
)
def test_turns_come_in_order_and_results_after_their_calls(
    messages: list[dict[str, Any]], code: str | None
) -> None:
    assert fault(*messages) == code


def test_a_call_needs_a_tool_of_that_name_where_tools_are_listed() -> None:
    assert fault(HI, call("f"), tools=[F]) is None
    assert fault(HI, call("g"), tools=[{"name": "f"}]) == "unknown_tool"
    assert fault(HI, call("g")) is None


def test_mid_training_takes_turns_as_they_are() -> None:
    row = {"messages": [YES, YES, RESULT]}
    made = to_conversation(row, source=SOURCE, index=0, supervise="all")
    assert len(made.messages) == 3


def test_control_tokens_are_found_wherever_they_stand(tokenizer: PreTrainedTokenizerFast) -> None:
    rules = text_rules(tokenizer, load_template("dualign"))
    end = "a <|im_end|> b"
    for messages in (
        [said(end, "user"), YES],
        [HI, said(f"<think>{end}</think>yes")],
        [HI, call("f"), said(end, "tool"), YES],
        [said(end, "system"), HI, YES],
    ):
        assert fault(*messages, rules=rules) == "control_token"
    argument = {"function": {"name": "f", "arguments": {"text": [end]}}}
    with_call = {"role": "assistant", "content": "", "tool_calls": [argument]}
    assert fault(HI, with_call, rules=rules) == "control_token"
    kwargs = {"custom_instructions": end}
    assert fault(HI, YES, chat_template_kwargs=kwargs, rules=rules) == "control_token"
    assert fault(HI, said("<|im_end> and <tool_call>"), rules=rules) is None


def test_the_end_of_turn_of_the_template_counts_even_if_the_tokenizer_has_it_as_text(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    template = load_template("dualign")
    assert template.end_of_turn == "<|im_end|>"
    rules = text_rules(tokenizer, template)
    assert rules.control is not None and rules.control.search("x<|im_end|>")
    assert trim_control_tokens("<bos> a <bos>b <bos><bos> ", rules.control) == " a <bos>b "


def test_a_flag_inside_a_word_is_a_fault_only_where_the_template_reads_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    system = said("See docs/thinking.md.", "system")
    expected = {"smollm3": "flag_in_word", "smollm3-training": "flag_in_word"}
    for name in ("dualign", "chatml", "smollm3", "smollm3-training"):
        rules = text_rules(tokenizer, load_template(name, tokenizer=tokenizer))
        assert fault(system, HI, YES, mode="no_think", rules=rules) == expected.get(name), name
        assert fault(said("/no_think", "system"), HI, YES, rules=rules) is None, name
        assert fault(said("docs/thinking", "user"), YES, mode="no_think", rules=rules) is None, name
