"""What doctor calls an error isn't trained: the same checks stop the encoder, for real families' ways."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.conversation import Conversation, Message, Mode
from dualign.data.faults import RowError
from dualign.data.seeds import indices_of
from dualign.data.text.checks import RenderingError, row_defects, turn_defects
from dualign.data.text.template import ChatTemplate, load_template
from dualign.data.tokens.encoding import ExampleEncoder
from dualign.switch import ENABLE_THINKING
from tests.data.encode import render_row

ANSWER = Message(role="assistant", content="Yes.")
OPENING = "<|assistant|>"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"where": "here"}}}
# The ways of published families, in the fewest words. Nemotron-Nano-v2: the prompt opens a block unless
# the text holds /no_think; enable_thinking isn't read. DeepSeek-V3.1: `thinking` opens the block, and a
# turn with calls closes one that it doesn't open. Kimi-K2-Thinking: every turn has a block.
NEMOTRON = (
    "{% set flags = namespace(think=true) %}{% for m in messages %}{% if '/no_think' in m.content and "
    "m.role in ('system', 'user') %}{% set flags.think = false %}{% endif %}{% endfor %}"
    "{% set block = '<think>\n' if flags.think else '<think></think>' %}{% for m in messages %}"
    "<SPECIAL_10>{{ m.role }}\n{{ block if m.role == 'assistant' else '' }}{{ m.content }}\n<SPECIAL_12>\n"
    "{% endfor %}{% if add_generation_prompt %}<SPECIAL_10>assistant\n{{ block }}{% endif %}"
)
DEEPSEEK = (
    "{{ tools | tojson if tools else '' }}{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}{% elif m.role == 'assistant' %}"
    "<assistant>{% if m.tool_calls %}</think>{{ m.content.split('</think>')[-1] }}{% for c in m.tool_calls %}"
    "<call>{{ c.function.name }}{{ c.function.arguments | tojson }}</call>{% endfor %}{% else %}"
    "{{ m.content if '</think>' in m.content else '</think>' + m.content }}{% endif %}<eos>{% else %}<out>"
    "{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{{ '<think>' if enable_thinking else '</think>' }}{% endif %}"
)
KIMI = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}<think>{{ m.reasoning_content or '' }}"
    "</think>{% endif %}{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def row(mode: Mode, *, thinking: str | None = None, calls: bool = False) -> Conversation:
    answer = Message(
        role="assistant",
        content="A tree.",
        thinking=thinking,
        tool_calls=(CALL,) if calls else (),
    )
    return Conversation(
        messages=(Message(role="user", content="Look."), answer),
        mode=mode,
        source="rows",
        row=3,
        tools=(TOOL,) if calls else (),
    )


def turn(produced: str, opening: str = OPENING) -> list[str]:
    return [code for code, _ in turn_defects(ANSWER, opening, produced)]


def test_a_turn_continues_its_prompt() -> None:
    assert turn("Yes.<end>") == []
    assert turn("<think>\nwhy\n</think>\nYes.<end>") == []
    assert turn("why\n</think>\nYes.<end>", OPENING + "<think>\n") == []
    assert turn("Yes.<end>", OPENING + "<think>\n\n</think>\n") == []
    assert turn(OPENING + "Yes.<end>") == ["prompt_supervised"]
    assert turn("<think>\n\n</think>\n\nYes.<end>") == ["empty_think_supervised"]
    assert turn("<think>why</think>Yes.<end>", OPENING + "<think>") == ["thinking_doubled"]
    assert turn("<think>why</think>Yes.", OPENING + "<think></think>") == ["thinking_doubled"]
    assert turn("Yes.<end>", OPENING + "<think>\n") == ["think_left_open"]
    assert turn("<think>Yes.<end>") == ["think_left_open"]


@pytest.mark.parametrize("tags", [("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>")])
def test_a_template_s_own_tags_are_counted(tags: tuple[str, str]) -> None:
    first, last = tags
    text = (
        "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}FIRST{{ m.reasoning_content }}LAST"
        "{% elif m.role == 'assistant' %}FILL{% endif %}{{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% if prefill %}FIRST{% endif %}{% endif %}"
    )
    text = text.replace("FIRST", first).replace("LAST", last)
    template = ChatTemplate(name="family", text=text.replace("FILL", ""))
    assert template.tags == tags
    rendered = render_row(template, row("think", thinking="I see"), "assistant")
    assert [rendered.text[slice(*span)] for span in rendered.spans] == [
        f"{first}I see{last}A tree.<end>"
    ]
    assert render_row(template, row("no_think"), "assistant").spans
    for fill, kwargs, code in (
        (first + last, {}, "empty_think_supervised"),
        (first, {"prefill": True}, "think_left_open"),
    ):
        template = ChatTemplate(
            name="family", text=text.replace("FILL", fill), template_kwargs=kwargs
        )
        with pytest.raises(RenderingError, match=rf"\[{code}\]"):
            render_row(template, row("no_think"), "assistant")


def test_tags_in_the_arguments_of_a_call_are_text() -> None:
    call = {"function": {"name": "write", "arguments": {"text": "<think>a</think><think>b"}}}
    message = Message(role="assistant", content="", tool_calls=(call,))
    produced = json.dumps(call) + "<end>"
    assert list(turn_defects(message, OPENING, produced)) == []
    assert list(turn_defects(message, OPENING, "<think>why</think>" + produced)) == []


@pytest.mark.parametrize("ascii", [True, False])
def test_a_result_that_is_printed_as_json_is_there(ascii: bool) -> None:
    result = Message(role="tool", content='{"sky": "blé\n"}')
    about: dict[str, Any] = {"mode": "no_think", "source": "rows", "row": 0}
    conversation = Conversation(messages=(result,), **about)
    text = f"<out>{json.dumps(result.content, ensure_ascii=ascii)}<end>"
    assert list(row_defects(conversation, text)) == []
    assert [defect.code for defect in row_defects(conversation, "<out><end>")] == ["message_lost"]


@pytest.mark.parametrize(
    ("text", "conversation", "code"),
    [
        (NEMOTRON, row("no_think"), "think_left_open"),
        (NEMOTRON, row("think", thinking="I see it"), "thinking_doubled"),
        (DEEPSEEK, row("think", thinking="I see it", calls=True), "template"),
        (KIMI, row("no_think"), "empty_think_supervised"),
    ],
    ids=["nemotron", "nemotron-think", "deepseek-calls", "kimi"],
)
def test_a_family_whose_turns_do_not_continue_their_prompt_is_refused(
    text: str, conversation: Conversation, code: str
) -> None:
    template = ChatTemplate(name="family", text=text, named_switch=ENABLE_THINKING)
    with pytest.raises(ValueError, match=r"rows, row 3, message 1: template 'family'") as refusal:
        render_row(template, conversation, "assistant")
    assert getattr(refusal.value, "code", "template") == code


@pytest.mark.parametrize(
    ("text", "conversation", "learnt"),
    [
        (NEMOTRON, row("no_think"), "A tree.\n<SPECIAL_12>"),  # its switch is the flag
        (DEEPSEEK, row("no_think"), "A tree.<eos>"),
        (
            DEEPSEEK,
            row("no_think", calls=True),
            'A tree.<call>look{"where": "here"}</call><eos>',
        ),
        (KIMI, row("think", thinking="I see it"), "<think>I see it</think>A tree.<end>"),
    ],
    ids=["nemotron", "deepseek", "deepseek-calls", "kimi-think"],
)
def test_the_other_rows_of_those_families_are_trained(
    text: str, conversation: Conversation, learnt: str
) -> None:
    rendered = render_row(ChatTemplate(name="family", text=text), conversation, "assistant")
    assert [rendered.text[start:stop] for start, stop in rendered.spans] == [learnt]


def encoder(folder: Path, used: PreTrainedTokenizerFast, **more: Any) -> ExampleEncoder:
    (folder / "rows.jsonl").write_text("{}")
    source = SourceConfig(path=str(folder / "rows.jsonl"), on_fault=more)
    return ExampleEncoder(
        source=source,
        data=DataConfig(sources=(source,)),
        tokenizer=used,
        template=load_template("chatml", tokenizer=used),
        rows=indices_of(np.array([True])),
    )


def test_the_encoder_stops_for_them_or_drops_and_counts_them(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    batch = {
        "messages": [
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        ],
        "tools": [[TOOL]],
    }
    with pytest.raises(RenderingError, match=r"look isn't in the text \[tools_lost\]"):
        encoder(tmp_path, tokenizer).encode(batch, [0])
    (dropped,) = encoder(tmp_path, tokenizer, tools_lost="drop").encode(batch, [0])
    assert isinstance(dropped.fault, RowError)
    assert dropped.entry["code"] == dropped.fault.code == "tools_lost"


CALLS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}<end>{% endfor %}"
)
PLAIN_TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
DESCRIBED = {
    "type": "function",
    "function": {"name": "look", "description": 'Look "there"\n and here.', "parameters": {}},
}


@pytest.mark.parametrize("tool", [PLAIN_TOOL, DESCRIBED])
@pytest.mark.parametrize(
    ("shown", "lost"),
    [
        ("", True),
        ("{{ tools | tojson }}", False),
        ("{{ tools[0] | tojson(indent=4) }}", False),
        (
            "{% for t in tools %}{{ t.function.name }}: {{ t.function.description }}{% endfor %}",
            False,
        ),
        ("You have some tools.", True),
    ],
)
def test_tools_are_lost_though_a_call_holds_their_name(
    tool: dict[str, Any], shown: str, lost: bool
) -> None:
    conversation = replace(row("no_think", calls=True), tools=(tool,))
    for results in (0, 2):
        answers = (conversation.messages[-1], Message(role="tool", content="x", name="look"))
        messages = (*conversation.messages, *(answers * results))
        longer = replace(conversation, messages=messages)
        template = ChatTemplate(name="t", text=shown + CALLS)
        text = template.texts(longer)(len(messages), False)
        codes = [defect.code for defect in row_defects(longer, text)]
        assert codes == (["tools_lost"] if lost else [])


def test_tools_that_the_system_text_describes_are_shown() -> None:
    instruction = Message(role="system", content=f"Call these: {json.dumps(TOOL)}")
    conversation = row("no_think", calls=True)
    conversation = replace(conversation, messages=(instruction, *conversation.messages))
    text = ChatTemplate(name="t", text=CALLS).texts(conversation)(3, False)
    assert list(row_defects(conversation, text)) == []
