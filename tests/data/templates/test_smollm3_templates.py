"""The SmolLM3 templates against worked renders, with placeholders for the default texts."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

import dualign

Message = dict[str, Any]
Render = Callable[..., str]

TEMPLATES = Path(dualign.__file__).parent / "data" / "templates"
TEXTS = {
    name: (TEMPLATES / f"{name}.jinja").read_text() for name in ("smollm3", "smollm3-training")
}

# Abbreviations in which the renders are written down.
THINK_TEXT = "Placeholder: think first."
NO_THINK_TEXT = "Placeholder: answer."
USER = "<|im_start|>user\nHi<|im_end|>\n"
OPENING = "<|im_start|>assistant\n"
EMPTY_THOUGHT = "<think>\n\n</think>\n"
# The end of a system block without tools. The released format leaves the block open.
END = {
    "smollm3": "\n\n",
    "smollm3-training": "\n\n## Tools\n\n### XML Tools\n\nNone\n\n"
    "### Python Tools\n\nNone\n\n<|im_end|>\n",
}
XML_RELEASED = (
    "You may call one or more functions to assist with the user query.\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n\n"
    "<tools>\n{tools}\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)
XML_TRAINING = (
    "You may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n\n"
    "<tools>\n{tools}\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags."
)
PYTHON_RELEASED = (
    "When you send a message containing Python code between '<code>' and '</code>' tags, it will "
    "be executed in a stateful Jupyter notebook environment, and you will then be given the output "
    "to continued reasoning in an agentic loop.\n\nYou can use the following tools in your python "
    "code like regular functions:\n<tools>\n{tools}\n</tools>\n\nThe state persists between code "
    "executions: so variables that you define in one step are still available thereafter."
)


def header(mode: str) -> str:
    return (
        "<|im_start|>system\n## Metadata\n\n"
        "Knowledge Cutoff Date: June 2025\nToday Date: 01 July 2025\n"
        f"Reasoning Mode: {mode}\n\n## Custom Instructions\n\n"
    )


def user(content: str = "Hi") -> Message:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


def system(content: str) -> Message:
    return {"role": "system", "content": content}


DEFAULTS = {
    "today": "01 July 2025",
    "default_think_instructions": THINK_TEXT,
    "default_no_think_instructions": NO_THINK_TEXT,
}


def byte_tokenizer(chat_template: str) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes, so that any text comes back as it went in."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def render_in_environment(name: str, messages: list[Message], **kwargs: Any) -> str:
    rendered, _ = render_jinja_template(
        [messages], chat_template=TEXTS[name], **{**DEFAULTS, **kwargs}
    )
    return rendered[0]


def render_by_tokenizer(name: str, messages: list[Message], **kwargs: Any) -> str:
    tokenizer = byte_tokenizer(TEXTS[name])
    ids = tokenizer.apply_chat_template(messages, return_dict=False, **{**DEFAULTS, **kwargs})
    return tokenizer.decode(ids)


def supervised(name: str, messages: list[Message], **kwargs: Any) -> list[str]:
    rendered, spans = render_jinja_template(
        [messages],
        chat_template=TEXTS[name],
        return_assistant_tokens_mask=True,
        **{**DEFAULTS, **kwargs},
    )
    return [rendered[0][start:end] for start, end in spans[0]]


@pytest.fixture(
    params=[render_in_environment, render_by_tokenizer], ids=["environment", "tokenizer"]
)
def render(request: pytest.FixtureRequest) -> Render:
    return request.param


@pytest.fixture(params=list(TEXTS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_think_is_the_default_mode_and_its_prompt_is_a_bare_header(
    render: Render, name: str
) -> None:
    expected = header("/think") + THINK_TEXT + END[name] + USER + OPENING
    assert render(name, [user()], add_generation_prompt=True) == expected


def test_no_think_prompt_ends_with_an_empty_think_block(render: Render, name: str) -> None:
    expected = header("/no_think") + NO_THINK_TEXT + END[name] + USER + OPENING + EMPTY_THOUGHT
    assert render(name, [user()], enable_thinking=False, add_generation_prompt=True) == expected


def test_system_flag_beats_the_argument(render: Render, name: str) -> None:
    by_flag = render(
        name, [system("/no_think"), user()], enable_thinking=True, add_generation_prompt=True
    )
    assert by_flag == render(name, [user()], enable_thinking=False, add_generation_prompt=True)


def test_think_flag_is_cut_out_of_the_instructions(render: Render, name: str) -> None:
    messages = [system("Speak like a pirate./think"), user()]
    expected = header("/think") + "Speak like a pirate." + END[name] + USER + OPENING
    assert render(name, messages, enable_thinking=False, add_generation_prompt=True) == expected


def test_instructions_lose_trailing_but_not_leading_space(render: Render, name: str) -> None:
    messages = [system("  Be brief. /no_think now  "), user()]
    expected = header("/no_think") + "  Be brief.  now" + END[name] + USER + OPENING + EMPTY_THOUGHT
    assert render(name, messages, add_generation_prompt=True) == expected


def test_custom_instructions_replace_the_default_text(render: Render, name: str) -> None:
    turn = OPENING + EMPTY_THOUGHT + "yo<|im_end|>\n"
    kwargs = {"custom_instructions": "You are a vampire", "enable_thinking": False}
    messages = [user(), assistant("\n\nyo")]
    expected = header("/no_think") + "You are a vampire" + END[name] + USER + turn
    assert render(name, messages, **kwargs) == expected
    assert supervised(name, messages, **kwargs) == [turn]


@pytest.mark.parametrize(
    "kwargs", [{}, {"tools": [{"name": "f"}]}, {"python_tools": ["def f(): ..."]}]
)
def test_system_override_leaves_only_the_instructions(
    render: Render, name: str, kwargs: dict[str, Any]
) -> None:
    messages = [system("Plain prompt. /system_override /no_think"), user()]
    expected = "<|im_start|>system\nPlain prompt.<|im_end|>\n" + USER + OPENING + EMPTY_THOUGHT
    assert render(name, messages, add_generation_prompt=True, **kwargs) == expected


def test_thinking_stays_in_every_turn(render: Render, name: str) -> None:
    messages = [
        user(),
        assistant("<think>\nr1\n</think>\n\nHello"),
        user("More"),
        assistant("<think>\nr2\n</think>\nBye"),
    ]
    turns = [
        OPENING + "<think>\nr1\n</think>\n\nHello<|im_end|>\n",
        OPENING + "<think>\nr2\n</think>\nBye<|im_end|>\n",
    ]
    expected = header("/think") + THINK_TEXT + END[name] + USER + turns[0]
    expected += "<|im_start|>user\nMore<|im_end|>\n" + turns[1]
    assert render(name, messages) == expected
    assert supervised(name, messages) == turns


def test_every_no_think_turn_gets_an_empty_think_block(render: Render, name: str) -> None:
    messages = [user(), assistant("Hello"), user("More"), assistant("Bye")]
    expected = header("/no_think") + NO_THINK_TEXT + END[name] + USER + OPENING + EMPTY_THOUGHT
    expected += (
        "Hello<|im_end|>\n<|im_start|>user\nMore<|im_end|>\n"
        + OPENING
        + EMPTY_THOUGHT
        + "Bye<|im_end|>\n"
    )
    assert render(name, messages, enable_thinking=False) == expected


def test_tool_results_are_user_turns_and_tool_calls_are_not_rendered(
    render: Render, name: str
) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    messages = [
        user(),
        assistant("Calling", tool_calls=[call]),
        {"role": "tool", "content": '{"t": 22}'},
        assistant("22"),
    ]
    expected = header("/no_think") + NO_THINK_TEXT + END[name] + USER + OPENING + EMPTY_THOUGHT
    expected += (
        'Calling<|im_end|>\n<|im_start|>user\n{"t": 22}<|im_end|>\n' + OPENING + EMPTY_THOUGHT
    )
    assert render(name, messages, enable_thinking=False) == expected + "22<|im_end|>\n"


@pytest.mark.parametrize("key", ["xml_tools", "tools"])
def test_released_format_prints_tool_mappings_as_python_does(render: Render, key: str) -> None:
    tools = XML_RELEASED.format(tools="{'name': 'f'}")
    expected = (
        header("/no_think") + NO_THINK_TEXT + f"\n\n### Tools\n\n{tools}\n\n<|im_end|>\n" + USER
    )
    assert render("smollm3", [user()], enable_thinking=False, **{key: [{"name": "f"}]}) == expected


def test_released_format_prints_tool_texts_as_given(render: Render) -> None:
    tools = XML_RELEASED.format(tools='{"name": "f"}\n{"name": "g"}')
    rendered = render("smollm3", [user()], xml_tools=['{"name": "f"}', '{"name": "g"}'])
    assert (
        rendered
        == header("/think") + THINK_TEXT + f"\n\n### Tools\n\n{tools}\n\n<|im_end|>\n" + USER
    )


@pytest.mark.parametrize("kwargs", [{"tools": [{"name": "f"}]}, {"xml_tools": ['{"name": "f"}']}])
def test_training_format_prints_tools_as_json(render: Render, kwargs: dict[str, Any]) -> None:
    tools = XML_TRAINING.format(tools='{"name": "f"}')
    expected = header("/no_think") + NO_THINK_TEXT + f"\n\n## Tools\n\n### XML Tools\n\n{tools}\n\n"
    expected += "### Python Tools\n\nNone\n\n<|im_end|>\n" + USER
    assert render("smollm3-training", [user()], enable_thinking=False, **kwargs) == expected


def test_released_format_explains_python_tools(render: Render) -> None:
    tools = PYTHON_RELEASED.format(tools="def f(x): ...")
    expected = (
        header("/no_think") + NO_THINK_TEXT + f"\n\n### Tools\n\n{tools}\n\n<|im_end|>\n" + USER
    )
    assert (
        render("smollm3", [user()], enable_thinking=False, python_tools=["def f(x): ..."])
        == expected
    )


@pytest.mark.parametrize(
    "given", [["def f(x): ...", "def g(): ..."], "def f(x): ...\ndef g(): ..."]
)
def test_training_format_prints_python_tools_bare(render: Render, given: list[str] | str) -> None:
    expected = header("/think") + THINK_TEXT + "\n\n## Tools\n\n### XML Tools\n\nNone\n\n"
    expected += "### Python Tools\n\ndef f(x): ...\ndef g(): ...\n\n<|im_end|>\n" + USER
    assert render("smollm3-training", [user()], python_tools=given) == expected


def test_both_kinds_of_tools_are_shown_in_the_released_format(render: Render) -> None:
    tools = XML_RELEASED.format(tools="F") + PYTHON_RELEASED.format(tools="P")
    rendered = render("smollm3", [user()], xml_tools=["F"], python_tools=["P"])
    assert (
        rendered
        == header("/think") + THINK_TEXT + f"\n\n### Tools\n\n{tools}\n\n<|im_end|>\n" + USER
    )


def test_no_think_turn_that_holds_a_trace_thinks_twice(render: Render, name: str) -> None:
    """The format does not look into the content: who renders a no_think row strips its traces."""
    messages = [user(), assistant("<think>\nr\n</think>\nHello")]
    expected = OPENING + EMPTY_THOUGHT + "<think>\nr\n</think>\nHello<|im_end|>\n"
    assert render(name, messages, enable_thinking=False).endswith(USER + expected)


@pytest.mark.parametrize("absent", [None, []])
def test_null_and_empty_tools_are_no_tools(
    render: Render, name: str, absent: list[str] | None
) -> None:
    plain = render(name, [user()])
    assert render(name, [user()], xml_tools=absent, python_tools=absent, tools=None) == plain


def test_null_custom_instructions_mean_the_default_text(render: Render, name: str) -> None:
    assert render(name, [user()], custom_instructions=None) == render(name, [user()])


def test_null_enable_thinking_is_no_think(render: Render, name: str) -> None:
    assert render(name, [user()], enable_thinking=None) == render(
        name, [user()], enable_thinking=False
    )


def test_no_think_flag_wins_when_both_are_given(render: Render, name: str) -> None:
    rendered = render(name, [system("/think a /no_think"), user()])
    assert rendered == header("/no_think") + " a" + END[name] + USER


def test_flags_outside_the_first_message_have_no_effect(render: Render, name: str) -> None:
    messages = [user(), system("/no_think"), user("/no_think")]
    expected = (
        header("/think") + THINK_TEXT + END[name] + USER + "<|im_start|>user\n/no_think<|im_end|>\n"
    )
    assert render(name, messages) == expected


@pytest.mark.parametrize("content", [None, [{"type": "text", "text": "lost"}]])
def test_content_that_is_no_string_renders_as_nothing(
    render: Render, name: str, content: Any
) -> None:
    rendered = render(name, [user(), assistant(content)])
    assert rendered == header("/think") + THINK_TEXT + END[name] + USER + OPENING + "<|im_end|>\n"


def test_system_message_of_parts_is_refused(name: str) -> None:
    parts = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    with pytest.raises(jinja2.TemplateError, match="must be a string"):
        render_in_environment(name, [parts, user()])


@pytest.mark.parametrize("key", ["xml_tools", "python_tools"])
def test_released_format_refuses_tools_given_as_text(key: str) -> None:
    with pytest.raises(jinja2.TemplateError, match="must be lists"):
        render_in_environment("smollm3", [user()], **{key: "def f(): ..."})


def test_no_messages_are_refused(name: str) -> None:
    with pytest.raises(jinja2.UndefinedError):
        render_in_environment(name, [])


@pytest.mark.parametrize("enable_thinking", [True, False])
def test_a_turn_starts_as_its_generation_prompt_and_earlier_turns_never_change(
    name: str, enable_thinking: bool
) -> None:
    messages = [user(), assistant("one"), user("More"), assistant("two")]
    kwargs = {"enable_thinking": enable_thinking}
    whole = render_in_environment(name, messages, **kwargs)
    for turn in (1, 3):
        prompt = render_in_environment(name, messages[:turn], add_generation_prompt=True, **kwargs)
        assert whole.startswith(prompt + messages[turn]["content"])


def test_supervised_tokens_decode_to_the_supervised_text(name: str) -> None:
    tokenizer = byte_tokenizer(TEXTS[name])
    messages = [user(), assistant("a\u00e9 b"), user("More"), assistant("c")]
    encoded = tokenizer.apply_chat_template(
        messages,
        return_dict=True,
        return_assistant_tokens_mask=True,
        enable_thinking=False,
        **DEFAULTS,
    )
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    opening = OPENING + EMPTY_THOUGHT
    expected = opening + "a\u00e9 b<|im_end|>\n" + opening + "c<|im_end|>\n"
    assert tokenizer.decode([token for token, supervised in pairs if supervised]) == expected


def test_date_is_today_unless_given(name: str) -> None:
    before = datetime.now().strftime("%d %B %Y")
    rendered = render_in_environment(name, [user()], today=None)
    after = datetime.now().strftime("%d %B %Y")
    assert any(f"Today Date: {date}\n" in rendered for date in (before, after))


def test_default_texts_are_there_without_being_given(name: str) -> None:
    texts = [
        render_jinja_template([[user()]], chat_template=TEXTS[name], enable_thinking=mode)[0][
            0
        ].split("\n\n")[3]
        for mode in (True, False)
    ]
    assert all(texts) and texts[0] != texts[1]


def test_fixed_text_has_the_length_of_the_published_renders() -> None:
    """Published: 1354 and 1420 with a default text of 1162 characters, 282 and 348 with 69."""
    prompt = [user()]
    for name, think, no_think in (
        ("smollm3", 1354 - 1162, 282 - 69),
        ("smollm3-training", 1420 - 1162, 348 - 69),
    ):
        rendered = render_in_environment(name, prompt, add_generation_prompt=True)
        assert len(rendered) - len(THINK_TEXT) == think
        rendered = render_in_environment(
            name, prompt, add_generation_prompt=True, enable_thinking=False
        )
        assert len(rendered) - len(NO_THINK_TEXT) == no_think
