"""Our jinja renders what transformers renders, refuses what it refuses, and has a pinned clock."""

from datetime import date
from pathlib import Path
from typing import Any

import jinja2
import pytest
import trl
from transformers.utils.chat_template_utils import render_jinja_template

import dualign
from dualign.data.text import sandbox
from dualign.errors import TemplateError

FAMILIES = (
    "qwen3",
    "qwen2_5",
    "llama3_2",
    "gemma3",
    "gptoss",
    "deepseekv3",
    "glm4moe",
    "cohere2_training",
)
FOREIGN = [Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja" for name in FAMILIES]
OURS = sorted((Path(dualign.__file__).parent / "data" / "templates").glob("*.jinja"))
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "<a> & 'b'",
            "parameters": {
                "type": "object",
                "properties": {"x": {"type": "string", "description": "é"}},
            },
        },
    }
]
PLAIN = [
    {"role": "system", "content": "Be brief. /no_think\nYes."},
    {"role": "user", "content": "  Hi <b>\n"},
    {"role": "assistant", "content": "Hello", "thinking": "why", "reasoning_content": "why"},
    {"role": "user", "content": "More"},
    {"role": "assistant", "content": "<think>\nso\n</think>\n\nBye"},
]
CALLS = [
    {"role": "user", "content": "Look."},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": "look", "arguments": {"x": "é & <"}}}
        ],
    },
    {"role": "tool", "content": "a tree", "name": "look", "tool_call_id": "a"},
    {"role": "assistant", "content": "A tree."},
]
NAMES = {
    "bos_token": "<bos>",
    "eos_token": "<|im_end|>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}


def transformers_render(text: str, messages: Any, given: dict[str, Any]) -> str:
    return render_jinja_template(conversations=[messages], chat_template=text, **given)[0][0]


def outcome(render: Any, text: str, messages: Any, given: dict[str, Any]) -> str:
    try:
        return str(render(text, messages, given))
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        return f"refused: {type(error).__name__}"


@pytest.mark.parametrize("path", [*OURS, *FOREIGN], ids=lambda path: path.stem)
def test_every_template_renders_as_in_transformers(path: Path) -> None:
    # The one thing that may differ is the clock.
    text = path.read_text(encoding="utf-8").replace("strftime_now(", "'' ~ (")
    rendered = 0
    for messages, tools in ((PLAIN, None), (PLAIN[1:], None), (CALLS, TOOLS)):
        for prompt, think in ((True, False), (False, True)):
            given = {**NAMES, "enable_thinking": think, "add_generation_prompt": prompt}
            given |= {"tools": tools, "documents": None}
            theirs, ours = (
                outcome(render, text, messages, given)
                for render in (transformers_render, sandbox.render)
            )
            assert ours == theirs
            rendered += not ours.startswith("refused")
    assert rendered


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages.__class__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% set made = namespace() %}{% set made._x = 1 %}",
        "{{ namespace(__init__=1) }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ strftime_now.__globals__ }}",
        "{{ dict.__class__ }}",
        "{{ raise_exception('no') }}",
    ],
)
def test_what_transformers_sandbox_refuses_is_refused(text: str) -> None:
    """Refused is an error, or nothing where the text would be."""
    chat = [{"role": "user", "content": "Hi"}]
    expected = outcome(transformers_render, text, chat, {})
    assert expected == "" or expected.startswith("refused")
    for _ in range(2):  # a verdict that is remembered is the same
        assert outcome(sandbox.render, text, chat, {}) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{% set made = namespace(x=1) %}{% set made.x = made.x + 1 %}{{ made.x }}{{ made.y }}",
        "{{ namespace().names }}|{{ namespace(names=3).names }}|{{ namespace().items }}",
        "{{ namespace({'a': 1}).a }}|{{ namespace(self=2).self }}|{{ namespace(a=1) }}",
        "{% set made = namespace() %}{% set made.__class__ = 1 %}",
        "{{ namespace({1: 2}) }}",
        "{% for one in messages %}{{ loop.first }}{{ loop.nextitem.role }}{{ loop.no }}{% endfor %}",
        "{{ messages[0].content.upper() }}{{ messages[0].content.no }}{{ messages[0].get('role') }}",
        "{{ '{x}'.format(x=1) }}{{ '{x}'.format_map({'x': 2}) }}{{ 'a,b'.split(',') }}",
        "{{ messages[0].content['upper']() }}{{ messages[0]['items']() | list }}",
        "{{ [1].index(1) }}{{ [3, 4].pop() }}",
        "{{ ''.join(1) }}",
        "{{ messages[0].items() | list }}{{ messages[0].no is defined }}{{ messages[0].role }}",
        "{% set made = namespace(f='{x}') %}{{ made.f.format(x=1) }}{{ made.__class__ }}",
        "{% set made = namespace(f='{x}'.format) %}{{ made.f(x=1) }}",
        "{% for one in messages %}{{ one.content.count('i') }}{% endfor %}",
    ],
)
def test_namespaces_and_methods_answer_as_in_transformers(text: str) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    expected = outcome(transformers_render, text, chat, {})
    for _ in range(2):
        assert outcome(sandbox.render, text, chat, {}) == expected


def test_variables_set_inside_a_generation_block_stay_inside() -> None:
    text = "{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}"
    assert sandbox.render(text, [], {}) == "21"
    assert render_jinja_template(conversations=[[]], chat_template=text)[0][0] == "21"


def test_the_clock_says_a_given_day_or_one_that_never_changes() -> None:
    text = "{{ strftime_now('%d %B %Y|%-d|%H:%M|100%%') }}"
    assert date(2025, 7, 1) == sandbox.PINNED_DATE
    assert sandbox.render(text, [], {}) == "01 July 2025|1|00:00|100%"
    for day in ("2024-12-31", "31 December 2024", "31 Dec 2024"):
        assert sandbox.render(text, [], {"date": day}).startswith("31 December 2024|31|")
    with pytest.raises(TemplateError, match="expected a date such as"):
        sandbox.render(text, [], {"date": "tomorrow"})
