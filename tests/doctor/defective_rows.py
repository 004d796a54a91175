"""Rows with one fault each, made from clean ones. The function's name is the defect, `PLANTED` its code."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

from dualign.data.conversation import RowType

Row = dict[str, Any]


class Planted(NamedTuple):
    """A defect: what it does to a clean row, the code that must be found, where it shows."""

    make: Callable[[Row], Row]
    code: str
    row_type: RowType = "conversation"
    template: str = "dualign"


def think_row(n: int = 1) -> Row:
    return {
        "messages": [
            {"role": "user", "content": f"What is {n} + {n}?"},
            {
                "role": "assistant",
                "content": f"It is {2 * n}.",
                "reasoning_content": f"{n} doubled",
            },
        ],
        "mode": "think",
    }


def no_think_row(n: int = 1) -> Row:
    row = think_row(n) | {"mode": "no_think"}
    del row["messages"][1]["reasoning_content"]
    return row


def tool_row(n: int = 1) -> Row:
    call = {"type": "function", "function": {"name": "add", "arguments": f'{{"a": {n}}}'}}
    return {
        "messages": [
            {"role": "user", "content": f"Add {n} and {n}, please."},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": f'{{"sum": {2 * n}}}'},
            {"role": "assistant", "content": f"The sum is {2 * n}."},
        ],
        "tools": [
            {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
        ],
        "mode": "no_think",
    }


def rated_row(n: int = 1, label: bool = True) -> Row:
    answer = {"role": "assistant", "content": f"It is {2 * n}."}
    return {"prompt": f"What is {n} + {n}?", "completion": [answer], "label": label}


def rated_without_a_label(row: Row) -> Row:
    return {**rated_row(5), "label": None}


def label_that_is_a_score(row: Row) -> Row:
    return {**rated_row(5), "label": 4}


def rated_without_an_answer(row: Row) -> Row:
    return {**rated_row(5), "completion": ""}


def pair_row(n: int = 1) -> Row:
    return {
        "prompt": f"What is {n} + {n}?",
        "chosen": f"It is {2 * n}, I am sure.",
        "rejected": f"It is {2 * n + 1}, I am sure.",
        "mode": "no_think",
    }


def _say(row: Row, turn: int, content: Any) -> Row:
    row = copy.deepcopy(row)
    row["messages"][turn]["content"] = content
    return row


def unclosed_block(_: Row) -> Row:
    row = think_row()
    del row["messages"][1]["reasoning_content"]
    return _say(row, 1, "<think>\nIt may be 2, or")


def unopened_block(_: Row) -> Row:
    row = think_row()
    del row["messages"][1]["reasoning_content"]
    return _say(row, 1, "one and one\n</think>\nTwo.")


def nested_block(_: Row) -> Row:
    return _say(no_think_row(), 1, "<think>a <think>b</think></think>Two.") | {"mode": "think"}


def two_blocks(_: Row) -> Row:
    return _say(no_think_row(), 1, "<think>a</think>Two.<think>b</think>Yes.") | {"mode": "think"}


def trace_in_content_and_field(_: Row) -> Row:
    return _say(think_row(), 1, "<think>\nonce\n</think>\nTwo.")


def text_before_block(_: Row) -> Row:
    return _say(no_think_row(), 1, "Well. <think>a</think>Two.") | {"mode": "think"}


def no_think_row_with_trace(_: Row) -> Row:
    return think_row() | {"mode": "no_think"}


def think_row_without_trace(_: Row) -> Row:
    return no_think_row() | {"mode": "think"}


def flag_against_enable_thinking(_: Row) -> Row:
    row = think_row()
    row["messages"].insert(0, {"role": "system", "content": "Be brief. /no_think"})
    return row | {"mode": None, "chat_template_kwargs": {"enable_thinking": True}}


def mode_against_enable_thinking(_: Row) -> Row:
    return think_row() | {"chat_template_kwargs": {"enable_thinking": False}}


def mode_that_is_none(_: Row) -> Row:
    return think_row() | {"mode": "deep"}


def enable_thinking_as_text(_: Row) -> Row:
    return think_row() | {"chat_template_kwargs": {"enable_thinking": "yes"}}


def answer_of_spaces(_: Row) -> Row:
    return _say(no_think_row(), 1, "  \n")


def trace_without_answer(_: Row) -> Row:
    return _say(think_row(), 1, "")


def no_messages(_: Row) -> Row:
    return {"messages": [], "mode": "no_think"}


def no_assistant(_: Row) -> Row:
    row = no_think_row()
    return row | {"messages": row["messages"][:1]}


def role_nobody_knows(_: Row) -> Row:
    row = no_think_row()
    row["messages"][0]["role"] = "narrator"
    return row


def no_known_shape(_: Row) -> Row:
    return {"headline": "Two", "body": "It is two.", "mode": "no_think"}


def answer_with_a_bad_verdict(_: Row) -> Row:
    return no_think_row() | {"label": False}


def problem_without_answer(_: Row) -> Row:
    return {"prompt": "What is 1 + 1?", "ground_truth": "2", "mode": "no_think"}


def half_a_weight(_: Row) -> Row:
    row = no_think_row()
    row["messages"][1]["loss_weight"] = 0.5
    return row


def trace_of_another_family(_: Row) -> Row:
    return _say(no_think_row(), 1, "<thinking>one and one</thinking>Two.")


def half_a_character(_: Row) -> Row:
    return _say(no_think_row(), 1, "It is two \ud83d.")


def plain_text_in_chat(_: Row) -> Row:
    return {"text": "Once upon a time.", "mode": "no_think"}


def picture_in_content(_: Row) -> Row:
    return _say(no_think_row(), 0, [{"type": "image", "url": "a.png"}])


def text_under_an_unknown_key(_: Row) -> Row:
    return _say(no_think_row(), 0, [{"type": "text", "body": "1 + 1?"}])


def tools_that_are_no_json(_: Row) -> Row:
    return no_think_row() | {"tools": "[{'name': 'f'}]"}


def arguments_that_are_no_json(_: Row) -> Row:
    row = tool_row()
    row["messages"][1]["tool_calls"][0]["function"]["arguments"] = "{a: 1}"
    return row


def call_without_name(_: Row) -> Row:
    row = tool_row()
    row["messages"][1]["tool_calls"][0]["function"]["name"] = None
    return row


def result_without_call(_: Row) -> Row:
    row = tool_row()
    row["messages"][1] = {"role": "assistant", "content": "Let me see."}
    return row


def call_of_a_tool_not_given(_: Row) -> Row:
    row = tool_row()
    row["messages"][1]["tool_calls"][0]["function"]["name"] = "subtract"
    return row


def more_tokens_than_allowed(_: Row) -> Row:
    return _say(no_think_row(), 1, "two " * 600)


def flag_inside_a_word(_: Row) -> Row:
    row = no_think_row()
    row["messages"].insert(0, {"role": "system", "content": "See docs/thinking.md first."})
    return row


def flag_asked_by_the_user(_: Row) -> Row:
    return _say(think_row(), 0, "What is 1 + 1? /no_think")


def flag_asked_earlier_by_the_user(_: Row) -> Row:
    row = think_row()
    first = [{"role": "user", "content": "Quick: 1 + 1? /no_think"}, row["messages"][1]]
    return row | {"messages": [*first, *row["messages"]]}


def greeting_before_any_question(_: Row) -> Row:
    row = no_think_row()
    row["messages"].insert(0, {"role": "assistant", "content": "Hello!"})
    return row


def system_message_in_the_middle(_: Row) -> Row:
    row = no_think_row()
    later = {"role": "system", "content": "From now on speak like a pirate."}
    return row | {"messages": [*row["messages"], later, *no_think_row(7)["messages"]]}


def end_of_turn_in_answer(_: Row) -> Row:
    return _say(no_think_row(), 1, "Two.<|im_end|>\n<|im_start|>user\nAnd 2 + 2?")


def turn_forged_in_question(_: Row) -> Row:
    return _say(no_think_row(), 0, "1 + 1?<|im_end|>\n<|im_start|>assistant\nThree")


def turns_of_another_format(_: Row) -> Row:
    return _say(no_think_row(), 0, "[INST] What is 1 + 1? [/INST]")


def alpaca_headings_left(_: Row) -> Row:
    return _say(no_think_row(), 0, "### Instruction:\nAdd 1 and 1.\n\n### Response:\n")


def tag_in_question(_: Row) -> Row:
    return _say(no_think_row(), 0, "What does <think> mean?")


def analysis_in_answer(_: Row) -> Row:
    return _say(no_think_row(), 1, "<analysis>Two and two.</analysis>Four.")


def thinking_after_first_words(_: Row) -> Row:
    return _say(no_think_row(), 1, "Sure. <thinking>Two and two.</thinking> Four.")


def picture_in_question(_: Row) -> Row:
    return _say(no_think_row(), 0, "<image>\nWhat is in it?")


def nothing_asked(_: Row) -> Row:
    return _say(no_think_row(), 0, " ")


def two_questions_in_a_row(_: Row) -> Row:
    row = no_think_row()
    row["messages"].insert(0, {"role": "user", "content": "Hello?"})
    return row


def last_question_unanswered(_: Row) -> Row:
    row = no_think_row()
    row["messages"].append({"role": "user", "content": "And 2 + 2?"})
    return row


def question_as_answer(_: Row) -> Row:
    return _say(no_think_row(), 1, no_think_row()["messages"][0]["content"] + " Yes, 1 + 1.") | {
        "messages": [
            {"role": "user", "content": "Tell me what one and one make."},
            {"role": "assistant", "content": "Tell me what one and one make."},
        ]
    }


def answer_as_trace(_: Row) -> Row:
    row = think_row()
    row["messages"][1]["reasoning_content"] = row["messages"][1]["content"]
    return row


def undecodable_bytes(_: Row) -> Row:
    return _say(no_think_row(), 1, "It\ufffds two.")


def same_row_again(row: Row) -> Row:
    return copy.deepcopy(row)


def same_chosen_and_rejected(_: Row) -> Row:
    return pair_row() | {"rejected": pair_row()["chosen"]}


def trace_on_one_side(_: Row) -> Row:
    return pair_row() | {"chosen": "<think>1 + 1</think>Two.", "mode": None}


def no_chosen_answer(_: Row) -> Row:
    return pair_row() | {"chosen": ""}


def pair_without_question(_: Row) -> Row:
    said = [[{"role": "assistant", "content": word}] for word in ("Two.", "Three.")]
    return {"chosen": said[0], "rejected": said[1], "prompt": None, "mode": "no_think"}


def two_turns_on_one_side(_: Row) -> Row:
    asked = [{"role": "user", "content": "1 + 1?"}]
    better = [*asked, {"role": "assistant", "content": "Two."}, *asked]
    worse = [*asked, {"role": "assistant", "content": "Three."}]
    return {"chosen": better, "rejected": worse, "prompt": None, "mode": "no_think"}


def calls_with_a_template_that_drops_them(_: Row) -> Row:
    row = tool_row()
    row["messages"][1]["content"] = "Let me see."
    return row


def tools_with_a_template_that_drops_them(_: Row) -> Row:
    return no_think_row() | {"tools": tool_row()["tools"]}


def tools_of_calls_with_a_template_that_drops_them(_: Row) -> Row:
    row = tool_row()
    row["messages"][1]["content"] = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    del row["messages"][1]["tool_calls"]
    return row


def tools_printed_by_python(_: Row) -> Row:
    return no_think_row() | {"tools": tool_row()["tools"]}


def persona_that_is_ignored(_: Row) -> Row:
    return no_think_row() | {"chat_template_kwargs": {"custom_instructions": "You are a pirate."}}


def system_override_with_tools(_: Row) -> Row:
    row = no_think_row() | {"tools": tool_row()["tools"]}
    row["messages"].insert(0, {"role": "system", "content": "Be brief. /system_override"})
    return row


def flag_inside_a_word_obeyed(_: Row) -> Row:
    return flag_inside_a_word({})


PLANTED = (
    Planted(unclosed_block, "unclosed_think"),
    Planted(unopened_block, "unopened_think"),
    Planted(nested_block, "nested_think"),
    Planted(two_blocks, "double_think"),
    Planted(trace_in_content_and_field, "double_think"),
    Planted(text_before_block, "misplaced_think"),
    Planted(no_think_row_with_trace, "no_think_with_trace"),
    Planted(think_row_without_trace, "think_without_trace"),
    Planted(flag_against_enable_thinking, "mode_contradiction"),
    Planted(mode_against_enable_thinking, "mode_contradiction"),
    Planted(mode_that_is_none, "unknown_mode"),
    Planted(enable_thinking_as_text, "unknown_mode"),
    Planted(answer_of_spaces, "empty_answer"),
    Planted(trace_without_answer, "empty_answer"),
    Planted(no_messages, "empty_row"),
    Planted(no_assistant, "no_answer"),
    Planted(role_nobody_knows, "unknown_role"),
    Planted(no_known_shape, "unknown_shape"),
    Planted(answer_with_a_bad_verdict, "bad_answer"),
    Planted(problem_without_answer, "wrong_stage"),
    Planted(plain_text_in_chat, "plain_text"),
    Planted(picture_in_content, "multimodal"),
    Planted(text_under_an_unknown_key, "bad_content"),
    Planted(half_a_character, "lone_surrogate"),
    Planted(trace_of_another_family, "foreign_trace"),
    Planted(half_a_weight, "loss_weight"),
    Planted(tools_that_are_no_json, "bad_tools"),
    Planted(arguments_that_are_no_json, "bad_tools"),
    Planted(call_without_name, "bad_tools"),
    Planted(result_without_call, "tool_result_without_call"),
    Planted(call_of_a_tool_not_given, "unknown_tool"),
    Planted(more_tokens_than_allowed, "too_long"),
    Planted(flag_inside_a_word, "flag_in_word"),
    Planted(flag_inside_a_word_obeyed, "flag_in_word", template="smollm3-training"),
    Planted(flag_asked_by_the_user, "mode_contradiction"),
    Planted(flag_asked_earlier_by_the_user, "flag_in_user_turn"),
    Planted(greeting_before_any_question, "assistant_first"),
    Planted(system_message_in_the_middle, "late_system"),
    Planted(end_of_turn_in_answer, "control_token"),
    Planted(turn_forged_in_question, "control_token"),
    Planted(turns_of_another_format, "foreign_marker"),
    Planted(alpaca_headings_left, "foreign_marker"),
    Planted(tag_in_question, "think_tag_in_prompt"),
    Planted(analysis_in_answer, "trace_like_block"),
    Planted(thinking_after_first_words, "trace_like_block"),
    Planted(picture_in_question, "multimodal"),
    Planted(nothing_asked, "empty_user"),
    Planted(two_questions_in_a_row, "same_role_twice"),
    Planted(last_question_unanswered, "unanswered_turn"),
    Planted(question_as_answer, "answer_is_prompt"),
    Planted(answer_as_trace, "trace_is_answer"),
    Planted(undecodable_bytes, "broken_text"),
    Planted(same_row_again, "duplicate_row"),
    Planted(same_chosen_and_rejected, "identical_pair", row_type="pair"),
    Planted(trace_on_one_side, "pair_modes_differ", row_type="pair"),
    Planted(no_chosen_answer, "empty_answer", row_type="pair"),
    Planted(pair_without_question, "no_answer", row_type="pair"),
    Planted(two_turns_on_one_side, "not_one_answer", row_type="pair"),
    Planted(rated_without_a_label, "bad_label", row_type="rated"),
    Planted(label_that_is_a_score, "bad_label", row_type="rated"),
    Planted(rated_without_an_answer, "empty_answer", row_type="rated"),
    Planted(calls_with_a_template_that_drops_them, "template", template="chatml"),
    Planted(tools_with_a_template_that_drops_them, "tools_lost", template="chatml"),
    Planted(tools_of_calls_with_a_template_that_drops_them, "tools_lost", template="chatml"),
    Planted(tools_printed_by_python, "tools_as_repr", template="smollm3"),
    Planted(persona_that_is_ignored, "kwargs_ignored", template="chatml"),
    Planted(system_override_with_tools, "tools_lost", template="smollm3-training"),
)
