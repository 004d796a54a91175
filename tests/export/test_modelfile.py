"""Modelfiles: what they say, and that their Go templates print what the Jinja templates print."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualign.data.text import sandbox
from dualign.data.text.template import load_template
from dualign.export.modelfile import go_template, modelfile
from dualign.models.tokenizer import with_defaults

USER = {"role": "user", "content": 'Is 3 < "4" & {{ so }}?\n\nSay é.'}
SYSTEM = {"role": "system", "content": "Be brief.\nNo jokes."}
THOUGHT = {"role": "assistant", "content": "Yes.", "thinking": "3 < 4"}
PLAIN = {"role": "assistant", "content": "Yes."}
CALL = {"role": "assistant", "content": "", "calls": [("look", {"at": 1}), ("look", {"at": 2})]}
TOLD = {"role": "assistant", "content": "I look.", "calls": [("look", {"at": 1})]}
RESULT = {"role": "tool", "content": "a tree"}
TALKS: list[list[dict[str, Any]]] = [
    [USER],
    [SYSTEM, USER],
    [USER, PLAIN, USER],
    [SYSTEM, USER, THOUGHT, USER, PLAIN, USER],
    [USER, CALL, RESULT, RESULT],
    [SYSTEM, USER, TOLD, RESULT, PLAIN, USER],
]
TOOL = {"function": {"description": "Looks.", "name": "look"}, "type": "function"}


Render = Callable[[str, list[dict[str, Any]]], list[str]]


@pytest.fixture(scope="module")
def by_go(tmp_path_factory: pytest.TempPathFactory) -> Render:
    """Renders a template for each case, as Ollama does."""
    if shutil.which("go") is None:
        pytest.skip("needs Go, whose templates Ollama uses")
    program = tmp_path_factory.mktemp("go") / "render"
    source = Path(__file__).with_name("render.go")
    subprocess.run(["go", "build", "-o", str(program), str(source)], check=True)

    def render(template: str, cases: list[dict[str, Any]]) -> list[str]:
        given = json.dumps({"Template": template, "Cases": cases})
        done = subprocess.run([str(program)], input=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        texts: list[str] = json.loads(done.stdout)
        return texts

    return render


def for_go(talk: list[dict[str, Any]], think: bool | None, *, tools: bool) -> dict[str, Any]:
    messages = [
        {
            "Role": item["role"],
            "Content": item["content"],
            "Thinking": item.get("thinking", ""),
            "ToolCalls": [
                {"Function": {"Name": name, "Arguments": arguments}}
                for name, arguments in item.get("calls", [])
            ],
        }
        for item in talk
    ]
    given = {"Think": bool(think), "IsThinkSet": think is not None}
    return {"Messages": messages, "Tools": [TOOL] if tools else None, **given}


def for_jinja(talk: list[dict[str, Any]], *, as_field: bool) -> list[dict[str, Any]]:
    """Tool arguments as Go writes them: without spaces."""
    made = []
    for item in talk:
        message = {"role": item["role"], "content": item["content"]}
        if "thinking" in item and as_field:
            message["reasoning_content"] = item["thinking"]
        elif "thinking" in item:
            message["content"] = f"<think>\n{item['thinking']}\n</think>\n\n{item['content']}"
        if "calls" in item:
            message["tool_calls"] = [
                {"function": {"name": name, "arguments": json.dumps(value, separators=(",", ":"))}}
                for name, value in item["calls"]
            ]
        made.append(message)
    return made


def compare(text: str, talks: list[list[dict[str, Any]]], tools: bool, by_go: Render) -> None:
    template = go_template(text)
    assert template is not None
    pairs = [(talk, think) for talk in talks for think in (None, True, False)]
    found = by_go(template, [for_go(talk, think, tools=tools) for talk, think in pairs])
    compact = json.dumps(TOOL, separators=(",", ":"))
    for (talk, think), got in zip(pairs, found, strict=True):
        given: dict[str, Any] = {"add_generation_prompt": True}
        given["xml_tools"] = [compact] if tools else None
        if think is not None:
            given["enable_thinking"] = think
        as_field = "reasoning_content" in text
        assert got == sandbox.render(text, for_jinja(talk, as_field=as_field), given)


@pytest.mark.parametrize("tools", [False, True])
def test_go_prints_what_the_dualign_template_prints_in_both_modes(
    tools: bool, by_go: Render
) -> None:
    compare(load_template("dualign").text, TALKS, tools, by_go)


def test_go_prints_what_a_recipe_gave_the_template(by_go: Render) -> None:
    values = {"date": "2025-07-01", "custom_instructions": 'Say "{{ yes }}"\nalways.'}
    compare(with_defaults(load_template("dualign").text, values), TALKS[:2], False, by_go)


@pytest.mark.parametrize("tools", [False, True])
def test_go_prints_what_the_smollm3_template_prints_in_both_modes(
    tools: bool, by_go: Render
) -> None:
    text = with_defaults(load_template("smollm3").text, {"today": "01 July 2025"})
    no_calls = [[USER], [SYSTEM, USER], [USER, PLAIN, USER], [SYSTEM, USER, PLAIN, RESULT]]
    compare(text, no_calls, tools, by_go)


def test_go_prints_a_traced_turn_of_the_smollm3_template_in_think_mode(by_go: Render) -> None:
    text = with_defaults(load_template("smollm3").text, {"today": "01 July 2025"})
    template = go_template(text)
    assert template is not None
    talk = [USER, THOUGHT, USER]
    (found,) = by_go(template, [for_go(talk, True, tools=False)])
    given = {"add_generation_prompt": True, "enable_thinking": True}
    assert found == sandbox.render(text, for_jinja(talk, as_field=False), given)


def test_go_prints_what_the_chatml_template_prints(by_go: Render) -> None:
    compare(load_template("chatml").text, [[USER], [SYSTEM, USER, PLAIN, USER]], False, by_go)


def test_it_says_how_to_stop_how_far_to_read_and_how_to_sample() -> None:
    text = modelfile(
        "x-F16.gguf",
        chat_template=load_template("dualign").text,
        end_of_turn="<|im_end|>",
        context=65536,
        generation={"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": None},
    )
    assert "\nFROM ./x-F16.gguf\n" in text
    assert text.endswith(
        'PARAMETER stop "<|im_end|>"\nPARAMETER num_ctx 8192\nPARAMETER temperature 0.6\nPARAMETER top_p 0.95\n'
    )


def test_a_foreign_template_is_left_to_ollama() -> None:
    text = modelfile(
        "x.gguf", chat_template="{{ messages }}", end_of_turn="</s>", context=2048, generation={}
    )
    assert "TEMPLATE" not in text
    assert "Ollama takes the one in the file" in text


def test_a_value_that_the_go_template_has_no_place_for_is_left_to_ollama() -> None:
    text = with_defaults(load_template("dualign").text, {"python_tools": ["def f(): ..."]})
    assert go_template(text) is None
