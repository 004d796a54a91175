"""The `dualign` template in other engines: the same text from a second jinja, only what they all know, and
the whole system block for those who want it."""

import json
import re
from typing import Any

import minijinja
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Environment, nodes
from jinja2.ext import loopcontrols

from dualign.data.text import sandbox
from dualign.data.text.template import load_template

TEXT = load_template("dualign").text
# Engines that only generate read past these marks; minijinja doesn't know them.
UNMARKED = re.sub(r"\{%(-?) *(?:end)?generation *(-?)%\}", r"{%\1 if true \2%}", TEXT, count=1)
UNMARKED = re.sub(r"\{%(-?) *endgeneration *(-?)%\}", r"{%\1 endif \2%}", UNMARKED)
TOOL = {"type": "function", "function": {"name": "look", "description": "é <b>", "parameters": {}}}


def second(messages: list[dict[str, Any]], given: dict[str, Any]) -> str:
    engine = minijinja.Environment(
        templates={"chat": UNMARKED}, trim_blocks=True, lstrip_blocks=True, pycompat=True
    )
    engine.add_filter("tojson", lambda value: json.dumps(value, ensure_ascii=False))
    return engine.render_template("chat", messages=messages, **given)


words = st.text(alphabet="ab <>/?é你\n.0{}%", max_size=14)
system = (
    st.none()
    | words
    | st.sampled_from(
        ["/no_think", "Be brief. /think", "x\n/system_override y /no_think", "docs/thinking.md"]
    )
)


@settings(max_examples=200)
@given(
    system=system,
    turns=st.lists(st.tuples(words, words, words, st.booleans()), min_size=1, max_size=3),
    given=st.fixed_dictionaries(
        {
            "add_generation_prompt": st.booleans(),
            "tools": st.none() | st.just([TOOL]),
        },
        optional={
            "enable_thinking": st.booleans(),
            "custom_instructions": words,
            "date": st.just("2025-07-01"),
            "python_tools": st.just(["def f(x): ..."]),
            "xml_tools": st.just([json.dumps(TOOL)]),
        },
    ),
)
def test_a_second_engine_renders_the_same(
    system: str | None, turns: list[tuple[str, str, str, bool]], given: dict[str, Any]
) -> None:
    messages: list[dict[str, Any]] = []
    if system is not None:
        messages.append({"role": "system", "content": system})
    for question, trace, answer, calls in turns:
        messages.append({"role": "user", "content": question})
        turn: dict[str, Any] = {"role": "assistant", "content": answer}
        if trace:
            turn["reasoning_content"] = trace
        if calls:
            turn["tool_calls"] = [{"function": {"name": "look", "arguments": {"at": answer}}}]
        messages.append(turn)
        if calls:
            messages.append({"role": "tool", "content": "a tree"})
    assert second(messages, given) == sandbox.render(TEXT, messages, given)


def test_it_uses_only_what_every_engine_knows() -> None:
    """llama.cpp's minja and vLLM's jinja2 know these; a method or filter beyond them must be tried there first."""
    text = re.sub(r"\{%-? *(?:end)?generation *-?%\}", "", TEXT)
    tree = Environment(extensions=[loopcontrols]).parse(text)
    called = {
        call.node.attr for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Getattr)
    }
    assert called <= {"split"}
    assert {node.name for node in tree.find_all(nodes.Filter)} <= {"trim", "join", "tojson"}
    assert {node.name for node in tree.find_all(nodes.Test)} <= {"defined", "none", "string"}
    functions = {
        call.node.name for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Name)
    }
    assert functions <= {"namespace"}


@pytest.mark.parametrize("flag", ["", " /think", " /no_think"])
def test_system_override_makes_its_text_the_whole_system_block(flag: str) -> None:
    messages = [
        {"role": "system", "content": f"Plain prompt. /system_override{flag}"},
        {"role": "user", "content": "Hi"},
    ]
    given = {"tools": [TOOL], "date": "2025-07-01", "custom_instructions": "no"}
    text = sandbox.render(TEXT, messages, {**given, "add_generation_prompt": True})
    prefill = "<think>\n\n</think>\n" if flag == " /no_think" else "<think>\n"
    assert text == (
        "<|im_start|>system\nPlain prompt.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        f"<|im_start|>assistant\n{prefill}"
    )


def test_system_override_is_a_word() -> None:
    messages = [{"role": "system", "content": "see docs/system_override.md"}]
    messages.append({"role": "user", "content": "Hi"})
    assert "see docs/system_override.md\n\n/think<|im_end|>" in sandbox.render(TEXT, messages, {})
