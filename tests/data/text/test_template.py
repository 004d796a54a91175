"""Templates render as plain transformers does, and a span is what follows a turn's generation prompt."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dualign.data.conversation import Conversation, Message, Mode, RawText
from dualign.data.text.spans import render_rows
from dualign.data.text.template import ChatTemplate, load_template
from dualign.data.tokens.labels import IGNORE_INDEX
from dualign.errors import TemplateError
from tests.data.encode import encode, render_row

FOREIGN = Path(trl.__file__).parent / "chat_templates"
MODES: tuple[Mode, ...] = ("think", "no_think")
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"where": "<here> & there"}}}


def conversation(mode: Mode, turns: int, *, system: str | None = None, **more: Any) -> Conversation:
    thinking = "why\n\nbecause" if mode == "think" else None
    messages = [Message(role="system", content=system)] if system else []
    for turn in range(turns):
        messages.append(Message(role="user", content=f"question {turn}"))
        messages.append(Message(role="assistant", content=f"answer {turn}", thinking=thinking))
    return Conversation(messages=tuple(messages), mode=mode, source="rows", row=3, **more)


def plain(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """The messages as a user of transformers would write them."""
    made = []
    for message in messages:
        trace = f"<think>\n{message.thinking}\n</think>\n\n" if message.thinking else ""
        turn: dict[str, Any] = {"role": message.role, "content": trace + message.content}
        if message.tool_calls:
            turn["tool_calls"] = [dict(call) for call in message.tool_calls]
        made.append(turn)
    return made


def spans_of(template: ChatTemplate, row: Conversation) -> list[str]:
    rendered = render_row(template, row, "assistant")
    return [rendered.text[start:stop] for start, stop in rendered.spans]


def test_the_dualign_template_renders_these_texts() -> None:
    template = load_template("dualign")
    think = render_row(template, conversation("think", 1), "assistant")
    head = "<|im_start|>system\n/think<|im_end|>\n<|im_start|>user\nquestion 0<|im_end|>\n"
    assert think.text == (
        f"{head}<|im_start|>assistant\n<think>\nwhy\n\nbecause\n</think>\n\nanswer 0<|im_end|>\n"
    )
    assert spans_of(template, conversation("think", 1)) == [
        "why\n\nbecause\n</think>\n\nanswer 0<|im_end|>"
    ]
    head = head.replace("/think", "/no_think")
    no_think = render_row(template, conversation("no_think", 1), "assistant")
    assert no_think.text == (
        f"{head}<|im_start|>assistant\n<think>\n\n</think>\nanswer 0<|im_end|>\n"
    )
    assert spans_of(template, conversation("no_think", 1)) == ["answer 0<|im_end|>"]


def test_the_system_block_holds_instructions_date_tools_and_ends_with_the_mode() -> None:
    row = conversation(
        "think",
        1,
        system="Be brief. /think\nBe kind.",
        tools=(TOOL,),
        template_kwargs={"custom_instructions": "Be a pirate.", "date": "2025-07-01"},
    )
    text = render_row(load_template("dualign"), row, "assistant").text
    block = text.split("<|im_end|>")[0]
    assert block.startswith(
        "<|im_start|>system\nBe brief.\nBe kind.\n\nBe a pirate.\n\nToday: 2025-07-01\n"
    )
    assert '<tools>\n{"type": "function", "function": {"name": "look"' in block
    assert block.endswith("\n\n/think")


@pytest.mark.parametrize(
    ("system", "mode"),
    [
        ("/no_think", "/no_think"),
        ("Answer. /no_think /think", "/think"),
        ("see docs/no_thinking.md and x/no_think", "/think"),
        ("plain", "/think"),
    ],
)
@pytest.mark.parametrize("given", [{}, {"enable_thinking": True}, {"enable_thinking": None}])
def test_whole_word_flags_decide_before_what_a_server_always_passes(
    tokenizer: PreTrainedTokenizerFast, system: str, mode: str, given: dict[str, Any]
) -> None:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(
        messages,
        chat_template=load_template("dualign").text,
        tokenize=False,
        add_generation_prompt=True,
        **given,
    )
    assert text.split("<|im_end|>")[0].endswith(f"\n{mode}")
    prefill = "<think>\n" if mode == "/think" else "<think>\n\n</think>\n"
    assert text.endswith(f"<|im_start|>assistant\n{prefill}")


@pytest.mark.parametrize("flag", ["/think", "/no_think"])
@pytest.mark.parametrize("argument", [True, False])
def test_a_flag_beats_the_argument(
    tokenizer: PreTrainedTokenizerFast, flag: str, argument: bool
) -> None:
    messages = [
        {"role": "system", "content": f"Be brief. {flag}"},
        {"role": "user", "content": "Hi"},
    ]
    template = load_template("dualign").text
    options: dict[str, Any] = {
        "chat_template": template,
        "tokenize": False,
        "add_generation_prompt": True,
    }
    wanted = tokenizer.apply_chat_template(messages, **options)
    assert f"\n{flag}<|im_end|>" in wanted
    assert tokenizer.apply_chat_template(messages, enable_thinking=argument, **options) == wanted


def test_a_trace_is_never_rendered_twice() -> None:
    template = load_template("dualign")
    as_field = render_row(template, conversation("think", 2), "assistant").text
    messages = tuple(
        Message(role=item["role"], content=item["content"])
        for item in plain(conversation("think", 2).messages)
    )
    inside = Conversation(messages=messages, mode="think", source="rows", row=0)
    assert render_row(template, inside, "all").text == as_field
    assert as_field.count("<think>") == 2


def test_calls_and_results_are_rendered_as_hermes_json() -> None:
    messages = (
        Message(role="user", content="Look."),
        Message(role="assistant", content="", tool_calls=(CALL,)),
        Message(role="tool", content="a tree"),
        Message(role="tool", content="a house"),
        Message(role="assistant", content="A tree."),
    )
    row = Conversation(messages=messages, mode="no_think", source="rows", row=0, tools=(TOOL,))
    template = load_template("dualign")
    assert spans_of(template, row) == [
        '<tool_call>\n{"name": "look", "arguments": {"where": "<here> & there"}}\n</tool_call><|im_end|>',
        "A tree.<|im_end|>",
    ]
    assert (
        "<|im_start|>user\n<tool_response>\na tree\n</tool_response>\n"
        "<tool_response>\na house\n</tool_response><|im_end|>\n"
    ) in render_row(template, row, "assistant").text
    with pytest.raises(TemplateError, match="leaves out the call of look"):
        render_row(load_template("chatml"), row, "assistant")


@pytest.mark.parametrize("name", ["dualign", "chatml"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_our_templates_render_as_plain_transformers_from_a_saved_tokenizer(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str, mode: Mode, turns: int
) -> None:
    tokenizer.save_pretrained(tmp_path)
    saved = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    saved.chat_template = load_template(name).text
    saved.save_pretrained(tmp_path)
    saved = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    template = load_template("tokenizer", tokenizer=saved)
    tools = (TOOL,) if name == "dualign" else ()
    row = conversation(mode, turns, system="Be brief.", tools=tools)
    given = {"enable_thinking": mode == "think", "tools": list(tools) or None}
    text = saved.apply_chat_template(plain(row.messages), tokenize=False, **given)
    assert render_row(template, row, "assistant").text == text
    prompt = saved.apply_chat_template(
        plain(row.messages[:-1]), tokenize=False, add_generation_prompt=True, **given
    )
    assert template.prompt(row.messages[:-1], mode=mode, tools=tools) == prompt


@pytest.mark.parametrize("mode", MODES)
def test_the_generation_blocks_are_the_spans(
    tokenizer: PreTrainedTokenizerFast, mode: Mode
) -> None:
    for name in ("dualign", "chatml"):
        template = load_template(name, tokenizer=tokenizer)
        row = conversation(mode, 3)
        example = encode(render_row(template, row, "assistant"), tokenizer, max_tokens=None)
        plain_mask = tokenizer.apply_chat_template(
            plain(row.messages),
            chat_template=template.text,
            enable_thinking=mode == "think",
            return_dict=True,
            return_assistant_tokens_mask=True,
        )["assistant_masks"]
        assert [int(label != IGNORE_INDEX) for label in example.labels] == plain_mask


OURS_AND_FOREIGN = ["dualign", "chatml", "smollm3", "smollm3-training"]
OURS_AND_FOREIGN += ["qwen3", "qwen2_5", "llama3", "gemma3"]
REWRITES_HISTORY = {("qwen3", "think"), ("qwen3", "no_think")}


@pytest.mark.parametrize("name", OURS_AND_FOREIGN)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_no_token_of_a_prompt_is_supervised(
    llama_tokenizer: PreTrainedTokenizerFast, name: str, mode: Mode, turns: int
) -> None:
    """Against plain transformers: turn i is supervised from the end of its prompt to its end-of-turn."""
    foreign = FOREIGN / f"{name}.jinja"
    template = load_template(str(foreign) if foreign.is_file() else name, tokenizer=llama_tokenizer)
    row = conversation(mode, turns)
    if (name, mode) in REWRITES_HISTORY and turns > 1:
        assert len(render_rows(template, row, "assistant")) == turns
        return
    rendered = render_row(template, row, "assistant")
    example = encode(rendered, llama_tokenizer, max_tokens=None)
    end = llama_tokenizer.convert_tokens_to_ids(template.end_of_turn)
    expected = [IGNORE_INDEX] * len(example.input_ids)
    for turn in range(1, 2 * turns, 2):
        prompt = llama_tokenizer.apply_chat_template(
            plain(row.messages[:turn]),
            chat_template=template.text,
            add_generation_prompt=True,
            enable_thinking=mode == "think",
            return_dict=False,
            today="01 July 2025",
        )
        assert example.input_ids[: len(prompt)] == prompt
        stop = example.input_ids.index(end, len(prompt)) + 1
        expected[len(prompt) : stop] = example.input_ids[len(prompt) : stop]
    assert example.labels == expected
    assert "question" not in llama_tokenizer.decode([i for i in example.labels if i >= 0])


def test_a_template_that_rewrites_history_can_still_train_the_last_turn() -> None:
    template = load_template(str(FOREIGN / "qwen3.jinja"))
    rendered = render_row(template, conversation("think", 3), "last")
    ((start, stop),) = rendered.spans
    assert rendered.text[start:stop] == "<think>\nwhy\n\nbecause\n</think>\n\nanswer 2<|im_end|>"
    assert rendered.text.count("because") == 1


def test_a_template_that_loses_the_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lossy.jinja"
    path.write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    template = load_template(str(path))
    assert spans_of(template, conversation("no_think", 1)) == ["answer 0<end>"]
    with pytest.raises(TemplateError, match="leaves out the trace"):
        render_row(template, conversation("think", 1), "assistant")


def test_a_template_without_an_end_of_turn_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "endless.jinja"
    path.write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    with pytest.raises(TemplateError, match="never learns to stop"):
        load_template(str(path))


def test_the_clock_is_pinned() -> None:
    text = "{{ strftime_now('%d %B %Y|%-d|%H:%M|100%%') }}{% for m in messages %}{{ m.content }}<e>{% endfor %}"
    clock = ChatTemplate(name="clock", text=text)
    messages = (Message(role="user", content="Hi"),)
    assert clock.prompt(messages, mode="think") == "01 July 2025|1|00:00|100%Hi<e>"
    day = {"date": "2024-12-31"}
    assert clock.prompt(messages, mode="think", template_kwargs=day).startswith(
        "31 December 2024|31|"
    )
    with pytest.raises(TemplateError, match="expected a date"):
        clock.prompt(messages, mode="think", template_kwargs={"date": "tomorrow"})


def test_an_unknown_template_names_the_nearest() -> None:
    with pytest.raises(TemplateError, match=r"unknown template 'dualing' \(did you mean 'dualign'"):
        load_template("dualing")
    with pytest.raises(TemplateError, match="no such file"):
        load_template("missing.jinja")


def test_plain_text_is_rendered_as_it_is(tokenizer: PreTrainedTokenizerFast) -> None:
    template = load_template("chatml", tokenizer=tokenizer)
    row = Conversation(
        messages=(Message(role="assistant", content="Once upon"),),
        mode="no_think",
        source="rows",
        row=0,
        raw=RawText(),
    )
    rendered = render_row(template, row, "all")
    assert (rendered.text, rendered.spans) == ("Once upon<|end_of_text|>", ((0, 24),))
    cut = render_row(template, replace(row, raw=RawText(ends=False)), "all")
    assert (cut.text, cut.spans) == ("Once upon", ((0, 9),))


words = st.text(alphabet="ab <>/?é你\n\t.0", max_size=12)


@settings(max_examples=150)
@given(
    turns=st.lists(
        st.tuples(words, words.filter(str.strip), words.filter(str.strip)), min_size=1, max_size=3
    ),
    think=st.booleans(),
    system=st.none() | words,
)
def test_spans_of_any_conversation_hold_exactly_the_turns(
    turns: list[tuple[str, str, str]], think: bool, system: str | None
) -> None:
    messages = [Message(role="system", content=system)] if system is not None else []
    expected = []
    for question, trace, answer in turns:
        thinking = trace.strip() if think else None
        messages.append(Message(role="user", content=question))
        messages.append(Message(role="assistant", content=answer, thinking=thinking))
        head = f"{thinking}\n</think>\n\n" if think else ""
        first, *more = answer.strip("\n").rstrip().splitlines(keepends=True)
        while not first.strip():  # lines of spaces at the head
            first, *more = more
        expected.append(f"{head}{first}{''.join(more)}<|im_end|>")
    mode: Mode = "think" if think else "no_think"
    row = Conversation(messages=tuple(messages), mode=mode, source="rows", row=0)
    assert spans_of(load_template("dualign"), row) == expected


def test_a_turn_that_does_not_start_with_its_generation_prompt_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jump.jinja"
    path.write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>Sure: {% endif %}"
    )
    with pytest.raises(TemplateError, match="doesn't start with the generation prompt of its mode"):
        render_row(load_template(str(path)), conversation("no_think", 1), "assistant")
