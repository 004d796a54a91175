"""Traces in the tags of other families, and flags beside text that has no spaces."""

import re

import pytest

from dualign.data.config import SourceConfig
from dualign.data.conversation import Conversation
from dualign.data.faults import RowError
from dualign.data.rows.foreign_traces import foreign_trace
from dualign.data.rows.sources import to_conversation
from dualign.data.think_tags import WHOLE_FLAG


def read(answer: str, question: str = "Hi", **on_fault: str) -> Conversation:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    source = SourceConfig(path="r", on_fault=on_fault)
    return to_conversation({"messages": turns}, source=source, index=0)


BLOCKS = (
    "<thinking>why</thinking>yes",
    "<antThinking>why</antThinking>yes",
    "<thinking>\nwhy\n</thinking>\n\nyes",
    "\n<Think>why</Think>yes",
    "< think >why</ think >yes",
    "<THINK>why</THINK>\nyes",
    "<reasoning>why</reasoning>yes",
    "<reason>why</reason>yes",
    "<thought>why</thought>yes",
    "<thoughts>why</thoughts>yes",
    "<seed:think>why</seed:think>yes",
    "<longcat_think>why</longcat_think>yes",
    "<scratchpad>why</scratchpad>yes",
    "<inner_monologue>why</inner_monologue>yes",
    "[THINK]why[/THINK]yes",
    "◁think▷why◁/think▷yes",
    "<|begin_of_thought|>\n\nwhy\n\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\n\nyes\n\n<|end_of_solution|>",
    "<|START_THINKING|>why<|END_THINKING|><|START_RESPONSE|>yes<|END_RESPONSE|>",
    "<|think_start|>why<|think_end|>yes",
    "<|thinking|>why<|/thinking|>yes",
    "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>final<|message|>yes",
    "<|channel>thought\nwhy<channel|>yes",
    "[unused16]why[unused17]yes",
)


@pytest.mark.parametrize("answer", BLOCKS)
def test_a_trace_of_another_family_is_a_fault_with_a_repair(answer: str) -> None:
    with pytest.raises(RowError, match="the trace of another family") as error:
        read(answer)
    assert error.value.code == "foreign_trace"
    repaired = read(answer, foreign_trace="read_trace")
    assert (repaired.mode, repaired.repairs) == ("think", ("read_trace",))
    assert (repaired.messages[1].thinking, repaired.messages[1].content) == ("why", "yes")


def test_a_block_that_is_not_closed_is_not_repaired() -> None:
    for answer in ("<thinking>why", "[THINK]why</think>", "<|begin_of_thought|>why"):
        with pytest.raises(RowError, match="read_trace can't mend it") as error:
            read(answer, foreign_trace="read_trace")
        assert error.value.code == "foreign_trace"


@pytest.mark.parametrize(
    "answer",
    [
        "<div>why</div>",
        "<answer>4</answer>",
        "[thinking aloud] It is two.",
        "[think] It is two.",
        "I <thinking>why</thinking> say yes",
        "<thinker>x</thinker>",
        "<rethink>x</rethink>",
        "<T>x</T>",
        "`<thinking>` is a tag.",
        "<think>why</think>yes",
    ],
)
def test_other_answers_are_none(answer: str) -> None:
    assert foreign_trace(answer) is None
    assert read(answer).messages[1].content in (answer, "yes")


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("/no_think", "/no_think"),
        ("Hi /no_think", "/no_think"),
        ("/no_think Hi", "/no_think"),
        ("Hi\n/no_think\nHo", "/no_think"),
        ("Hi\u3000/no_think\u3000Ho", "/no_think"),
        ("你好 /no_think请简短", "/no_think"),
        ("你好/no_think", "/no_think"),
        ("请简短。/no_think。", "/no_think"),
        ("Hi /no_think, please", "/no_think"),
        ("Hi /no_think.", "/no_think"),
        ("Hi /no_think!", "/no_think"),
        ("Hi /think\uff1f", "/think"),
        ("Hi /no_thinking", None),
        ("Hi /no_think2", None),
        ("docs/no_think", None),
        ("docs/think.md", None),
        ("/think.md", None),
        ("/think/x", None),
        ("/think-tank", None),
        ('Write "/no_think" to switch.', None),
        ("`/think`", None),
        ("https://x.org/think", None),
        ("/thinké", None),
        ("//think", None),
    ],
)
def test_a_flag_is_a_word_of_its_own_though_text_without_spaces_follows(
    text: str, flag: str | None
) -> None:
    match = re.search(WHOLE_FLAG, text)
    assert (match[0] if match else None) == flag
    mode = {"/no_think": "no_think", "/think": "think"}.get(str(flag))
    if mode == "no_think":
        with pytest.raises(RowError, match="no_think_with_trace"):
            read("<think>why</think>yes", question=text)
        assert read("yes", question=text).mode == "no_think"
    elif mode == "think":
        with pytest.raises(RowError, match="think_without_trace"):
            read("yes", question=text)
    else:
        assert read("yes", question=text).mode == "no_think"
        assert read("<think>why</think>yes", question=text).mode == "think"
