"""Turns that go on after an end, calls that end as answers do, and tokens that a tokenizer lacks."""

from dataclasses import replace
from pathlib import Path

import pytest
import trl

from dualign.data.conversation import Conversation, Message
from dualign.data.text.spans import render_rows
from dualign.data.text.template import ChatTemplate, load_template
from dualign.errors import TemplateError
from tests.data.text.test_turn_shapes import CALL, GLM, NEEDS_TOOLS, TOOL, turns
from tests.doctor.test_trials import tokenizer_for

GEMMA_4 = Path(trl.__file__).parent / "chat_templates" / "gemma4_v5.jinja"
# Solar's: the trace is a message of its own, and ends as the answer does.
TWO_MESSAGES = (
    "{% for m in messages %}{% if m.reasoning %}<|begin|>{{ m.role }}<|think|>{{ m.reasoning }}<|end|>"
    "{% endif %}<|begin|>{{ m.role }}<|content|>{{ m.content }}<|end|>{% endfor %}"
    "{{ '<|begin|>assistant' if add_generation_prompt else '' }}"
)
# Nemotron's: the space before the end is another one once a turn follows.
OTHER_SPACE = (
    "{{ tools | tojson if tools else '' }}{% for m in messages %}<{{ m.role }}>\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<CALL>{{ c.function | tojson }}</CALL>{% endfor %}"
    "{{ '\n' if m.role == 'assistant' and not loop.last else '' }}<end>{% endfor %}{{ '<assistant>\n' if add_generation_prompt else '' }}"
)
# A call can't be asked for: its generation prompt has another header.
OTHER_HEADER = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if tools %}<rules>{{ tools | tojson }}{% endif %}{{ '<assistant>' if add_generation_prompt else '' }}"
)
# Only a call that was thought about is asked for as it is written.
THOUGHTFUL = (
    "{{ tools | tojson if tools else '' }}{% for m in messages %}<{{ m.role }}>{{ m.thinking or '' }}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}<result>{% endfor %}"
    "{{ '' if m.tool_calls else '<end>' }}{% endfor %}"
    "{{ '<assistant>' if add_generation_prompt else '' }}"
    "{{ '<none>' if add_generation_prompt and not enable_thinking else '' }}"
)


def made(text: str, without: str = "") -> ChatTemplate:
    """The template with a tokenizer that has its tokens, but one."""
    tokenizer = tokenizer_for(text.replace(without, "") if without else text)
    tokens = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    return ChatTemplate(name="made", text=text, tokens=tokens)


def test_a_turn_that_goes_on_after_an_end_is_refused() -> None:
    """Trained on, the model would stop after its trace: the token is among the eos ids."""
    template = made(TWO_MESSAGES)
    (row,) = render_rows(template, turns("no_think"), "assistant")
    assert row.text[slice(*row.spans[0])] == "<|content|>answer 0<|end|>"
    with pytest.raises(TemplateError, match=r"message 1: .* the turn goes on after '<\|end\|>'"):
        render_rows(template, turns("think"), "assistant")


def test_a_text_after_its_call_is_refused() -> None:
    template = load_template(str(GEMMA_4))
    call = Message(role="assistant", content="I look.", tool_calls=(CALL,))
    row = replace(turns("no_think", calls=True), messages=(Message(role="user", content="?"), call))
    with pytest.raises(TemplateError, match="writes the turn's text after its calls"):
        render_rows(template, row, "assistant")
    (rendered,) = render_rows(
        template, replace(row, messages=(row.messages[0], replace(call, content=""))), "assistant"
    )
    assert rendered.text[slice(*rendered.spans[0])].endswith("<tool_call|><|tool_response>")


def test_a_call_ends_as_an_answer_does_whatever_the_space_before() -> None:
    template = made(OTHER_SPACE)
    assert template.ends == ("<end>",)
    row = turns("no_think", calls=True)
    (rendered,) = render_rows(template, replace(row, messages=row.messages[:2]), "assistant")
    assert rendered.text[slice(*rendered.spans[0])].endswith("</CALL><end>")


def test_ends_are_those_of_turns_that_can_be_trained() -> None:
    assert made(OTHER_HEADER).ends == ("<end>",)
    assert made(THOUGHTFUL).ends == ("<end>", "<result>")


@pytest.mark.parametrize(
    ("lacks", "words"),
    [
        ("<|user|>", r"ends an answer with '<\|user\|>', which is no token of this tokenizer"),
        ("<|observation|>", ""),
    ],
)
def test_a_token_that_the_tokenizer_lacks_is_named(tmp_path: Path, lacks: str, words: str) -> None:
    file = tmp_path / "glm.jinja"
    # The tokens of the roles are written out, so that a tokenizer can be made of them.
    text = "{# <|user|> <|assistant|> <|observation|> #}" + GLM
    file.write_text(text)
    tokenizer = tokenizer_for(text.replace(lacks, ""))
    if words:
        with pytest.raises(TemplateError, match=words):
            load_template(str(file), tokenizer=tokenizer)
        return
    template = load_template(str(file), tokenizer=tokenizer)
    with pytest.raises(TemplateError, match="no token ends the turn, which ends with"):
        render_rows(template, turns("no_think", calls=True), "assistant")
    assert template.ends == ("<|user|>",)


def test_a_template_for_tools_says_so_of_a_row_without() -> None:
    template = ChatTemplate(name="made", text="{{ tools | length }}" + NEEDS_TOOLS)
    row = Conversation(
        messages=turns("no_think").messages, mode="no_think", source="rows", row=0, tools=(TOOL,)
    )
    assert render_rows(template, row, "assistant")
    with pytest.raises(TemplateError, match="it renders rows with tools alone"):
        render_rows(template, replace(row, tools=()), "assistant")
