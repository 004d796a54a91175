"""Families switch their modes in different ways: each is found by trying, or stated, and trained so."""

import json
from typing import Any

import pytest

from dualign.data.conversation import Conversation, Message
from dualign.data.text.modes import stated_switch, switch_line
from dualign.data.text.template import ChatTemplate, load_template
from dualign.switch import ENABLE_THINKING, Switch
from tests.data.encode import render_row
from tests.data.text import families

FOUND = {
    "GRANITE": "{think: {thinking: true}, no_think: {thinking: false}}",
    "DEEPSEEK": "{think: {thinking: true}, no_think: {thinking: false}}",
    "GPT_OSS": '{think: {reasoning_effort: "high"}, no_think: {reasoning_effort: "low"}}',
    "NEMOTRON": '{think: {system: "detailed thinking on"}, no_think: {system: "detailed thinking off"}}',
    "NEMOTRON_NANO": '{think: {system: "/think"}, no_think: {system: "/no_think"}}',
    "CUSTOM": "None",
    "PLAIN": "None",
    "GEMMA": "None",
}
EFFORT = Switch(think={"effort": 2}, no_think={"effort": 0})


def family(name: str) -> ChatTemplate:
    return ChatTemplate(name=name, text=getattr(families, name))


def row(mode: Any, system: str | None = None, **more: Any) -> Conversation:
    trace = "why" if mode == "think" else None
    messages = [Message(role="system", content=system)] if system else []
    messages += [
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Yes", thinking=trace),
    ]
    return Conversation(messages=tuple(messages), mode=mode, source="rows", row=0, **more)


@pytest.mark.parametrize("name", FOUND)
def test_the_switch_of_a_family_is_found_by_trying(name: str) -> None:
    template = family(name)
    assert str(template.switch) == FOUND[name]
    assert template.switches == (FOUND[name] != "None")


def test_the_switch_of_a_template_that_needs_tools_is_found() -> None:
    text = "{%- if not tools %}{{- raise_exception('no tools') }}{%- endif %}" + families.GRANITE
    template = ChatTemplate(name="tools", text=text)
    assert str(template.switch) == FOUND["GRANITE"] and template.switches


@pytest.mark.parametrize("name", ["dualign", "smollm3", "smollm3-training"])
def test_our_templates_switch_by_enable_thinking(name: str) -> None:
    assert load_template(name).switch == ENABLE_THINKING


def test_rows_are_rendered_with_the_switch_of_their_mode() -> None:
    think, no_think = (
        render_row(family("NEMOTRON"), row(mode, "Be brief."), "assistant").text
        for mode in ("think", "no_think")
    )
    assert think.startswith("<|im_start|>system\ndetailed thinking on\n\nBe brief.<|im_end|>")
    assert no_think.startswith("<|im_start|>system\ndetailed thinking off\n\nBe brief.<|im_end|>")
    effort = render_row(
        family("GPT_OSS"), row("think", template_kwargs={"reasoning_effort": "medium"}), "assistant"
    )
    assert "Reasoning: medium" in effort.text


@pytest.mark.parametrize("name", ["NEMOTRON", "GPT_OSS"])
def test_a_text_that_switches_moves_no_span(name: str) -> None:
    rendered = render_row(family(name), row("no_think"), "assistant")
    assert [rendered.text[start:stop] for start, stop in rendered.spans] == ["Yes<|im_end|>"]


def test_a_named_switch_is_stated_in_the_saved_template_and_read_again() -> None:
    stated = switch_line(EFFORT) + families.CUSTOM
    saved = ChatTemplate(name="saved", text=stated)
    assert saved.switch == EFFORT and saved.switches
    named = family("CUSTOM").with_switch(EFFORT)
    assert (
        render_row(saved, row("think"), "last").text == render_row(named, row("think"), "last").text
    )
    tricky = Switch(think={"system": "a #} b {{ c"}, no_think={"system": "\n"})
    assert stated_switch(switch_line(tricky) + "x") is None  # an empty text switches nothing
    tricky = Switch(think={"system": "a #} b {{ c"}, no_think={})
    assert stated_switch(switch_line(tricky) + "x") == tricky


@pytest.mark.parametrize(
    "line", ["{# switch: {} #}", "{# switch: {1} #}", '{# switch: {"think": 1} #}']
)
def test_a_comment_that_states_no_switch_is_a_comment(line: str) -> None:
    assert stated_switch(f"{line}\n{families.PLAIN}") is None


def test_a_switch_that_changes_nothing_tells_no_modes_apart() -> None:
    assert not family("PLAIN").with_switch(ENABLE_THINKING).switches


def test_rows_with_tools_have_the_template_for_tools() -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    tool_use = "<tools>{{ tools | tojson }}</tools>" + families.PLAIN
    template = ChatTemplate(name="both", text=families.PLAIN, tool_use=tool_use)
    assert "<tools>" in render_row(template, row("no_think", tools=(tool,)), "last").text
    assert "<tools>" not in render_row(template, row("no_think"), "last").text
    assert template.prompt((Message(role="user", content="Hi"),), mode="think", tools=[tool]) == (
        f"<tools>{json.dumps([tool])}</tools><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
