"""The mask matrix: no token that the prompt supplies is supervised, and what is supervised is what the
model must emit, for each template, mode, number of turns, tools and policy.
"""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import PreTrainedTokenizerFast

from dualign.data.config import Supervise
from dualign.data.conversation import Conversation, Message, Mode
from dualign.data.text.spans import RenderedRow, render_rows
from dualign.data.text.template import ChatTemplate, load_template
from dualign.data.tokens.labels import IGNORE_INDEX
from dualign.errors import TemplateError
from tests.data.encode import encode, render_row

FOREIGN = Path(trl.__file__).parent / "chat_templates"
# No package here ships a Mistral template, so these are written to its published formats. The first
# version: no header before an answer, the system text in the first user turn, no tools.
_MISTRAL_TURNS = (
    "{{ bos_token }}{% set turns = messages %}{% set said = '' %}{% if messages[0].role == 'system' %}"
    "{% set turns = messages[1:] %}{% set said = messages[0].content + '\\n\\n' %}{% endif %}"
    "{% set asked = turns | selectattr('role', 'equalto', 'user') | list %}"
)
MISTRAL = _MISTRAL_TURNS + (
    "{% for m in turns %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (said if loop.first else '') + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
# The third version: the system text and the tools stand before the last question alone, so that every
# turn is rewritten once another follows.
MISTRAL_3 = _MISTRAL_TURNS + (
    "{% for m in turns %}{% if m.role == 'user' %}{% if m == asked[-1] %}"
    "{% if tools %}{{ '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{{ '[INST] ' + said + m.content + '[/INST]' }}{% else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}"
    "{% elif m.role == 'tool' %}"
    "{{ '[TOOL_RESULTS] ' + {'content': m.content} | tojson + '[/TOOL_RESULTS]' }}"
    "{% elif m.tool_calls %}"
    "{{ '[TOOL_CALLS] ' + m.tool_calls | map(attribute='function') | list | tojson + eos_token }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
WRITTEN = {"mistral": MISTRAL, "mistral-3": MISTRAL_3}
NAMES = ["dualign", "chatml", "smollm3", "smollm3-training"]
NAMES += ["qwen3", "qwen2_5", "llama3", "gemma3", "mistral", "mistral-3"]
NO_TOOLS = {"chatml", "smollm3", "llama3", "gemma3", "mistral"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def template_of(name: str, tokenizer: PreTrainedTokenizerFast, folder: Path) -> ChatTemplate:
    if name in WRITTEN:
        path = folder / f"{name}.jinja"
        path.write_text(WRITTEN[name])
    else:
        path = FOREIGN / f"{name}.jinja"
    return load_template(str(path) if path.is_file() else name, tokenizer=tokenizer)


def conversation(mode: Mode, turns: int, *, tools: bool) -> Conversation:
    messages = [Message(role="system", content="Be brief.")]
    for turn in range(turns):
        messages.append(Message(role="user", content=f"question {turn}"))
        thinking = f"why {turn}\n\nbecause" if mode == "think" else None
        messages.append(Message(role="assistant", content=f"answer {turn}", thinking=thinking))
    given = (TOOL,) if tools else ()
    return Conversation(messages=tuple(messages), mode=mode, source="rows", row=0, tools=given)


class Plain:
    """What a user of plain transformers gets, with the conversation written as they would write it."""

    def __init__(
        self, template: ChatTemplate, tokenizer: PreTrainedTokenizerFast, row: Conversation
    ):
        self.template, self.tokenizer, self.row = template, tokenizer, row

    def text(self, count: int, *, prompt: bool) -> str:
        messages = []
        for message in self.row.messages[:count]:
            trace = f"<think>\n{message.thinking}\n</think>\n\n" if message.thinking else ""
            messages.append({"role": message.role, "content": trace + message.content})
        return self.tokenizer.apply_chat_template(
            messages,
            chat_template=self.template.text,
            tools=list(self.row.tools) or None,
            add_generation_prompt=prompt,
            tokenize=False,
            enable_thinking=self.row.mode == "think",
            today="01 July 2025",
        )

    def emitted(self, turn: int, policy: Supervise) -> tuple[str, str]:
        """(what the model has seen, what it must emit) for the turn under a policy."""
        prompt = self.text(turn, prompt=True)
        produced = self.text(turn + 1, prompt=False)[len(prompt) :]
        end = produced.index(self.template.end_of_turn) + len(self.template.end_of_turn)
        produced = produced[:end]
        closing = produced.find("</think>\n\n") + len("</think>\n\n")
        if "</think>" not in produced:
            closing = 0
        if policy == "answers":
            return prompt + produced[:closing], produced[closing:]
        if policy == "thinking":
            return prompt, produced[:closing]
        return prompt, produced


def check(
    plain: Plain, rows: list[RenderedRow], turns: list[int], policy: Supervise, used: Any
) -> None:
    expected = [plain.emitted(turn, policy) for turn in turns]
    found = [(row.text[:start], row.text[start:stop]) for row in rows for start, stop in row.spans]
    assert found == [item for item in expected if item[1]]
    for row in rows:
        if not row.spans:
            continue
        example = encode(row, used, max_tokens=None)
        given = used(row.text[: row.spans[0][0]], add_special_tokens=False)["input_ids"]
        assert example.input_ids[: len(given)] == given
        assert set(example.labels[: len(given)]) == {IGNORE_INDEX}, "the prompt is supervised"
        learnt = [label for label in example.labels if label != IGNORE_INDEX]
        assert used.decode(learnt) == "".join(row.text[start:stop] for start, stop in row.spans)


@pytest.mark.parametrize("name", NAMES)
def test_the_supervised_text_is_what_the_model_must_emit(
    name: str, llama_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    template = template_of(name, llama_tokenizer, tmp_path)
    with_tools = (False,) if name in NO_TOOLS else (False, True)
    for mode, turns, tools in product(("think", "no_think"), (1, 2, 3, 4), with_tools):
        row = conversation(mode, turns, tools=tools)  # type: ignore[arg-type]
        plain = Plain(template, llama_tokenizer, row)
        answers = list(range(2, 2 * turns + 1, 2))
        for policy in ("assistant", "answers", "thinking"):
            rows = render_rows(template, row, policy)  # type: ignore[arg-type]
            check(plain, rows, answers, policy, llama_tokenizer)  # type: ignore[arg-type]
        check(
            plain,
            render_rows(template, row, "last"),
            answers[-1:],
            "last",
            llama_tokenizer,
        )
        (whole,) = render_rows(template, row, "all")
        assert whole.spans == ((0, len(whole.text)),)
        flagged = list(row.messages)
        flagged[2] = replace(flagged[2], train=False)
        some = replace(row, messages=tuple(flagged))
        if turns > 1:
            rows = render_rows(template, some, "assistant")
            check(plain, rows, answers[1:], "assistant", llama_tokenizer)


def test_a_template_that_drops_old_thoughts_makes_a_row_for_each_turn(
    llama_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    template = template_of("qwen3", llama_tokenizer, tmp_path)
    rows = render_rows(template, conversation("think", 3, tools=False), "assistant")
    assert [row.text.count("because") for row in rows] == [1, 1, 1]
    learnt = [row.text[start:stop] for row in rows for start, stop in row.spans]
    assert learnt == [
        f"<think>\nwhy {turn}\n\nbecause\n</think>\n\nanswer {turn}<|im_end|>" for turn in range(3)
    ]
    trained = [[message.train for message in row.conversation.messages] for row in rows]  # type: ignore[union-attr]
    assert [len(row) for row in trained] == [3, 5, 7]
    assert [row[2:] for row in trained] == [
        [True],
        [False, True, True],
        [False, True, False, True, True],
    ]


def test_turns_that_still_look_alike_share_a_row(
    llama_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Qwen3 keeps the thoughts since the last user turn, so a call and the answer to its result stay together."""
    call = {"type": "function", "function": {"name": "look", "arguments": {"where": "here"}}}
    first = conversation("think", 1, tools=True).messages
    messages = (
        *first,
        Message(role="user", content="Look."),
        Message(role="assistant", content="", thinking="I look", tool_calls=(call,)),
        Message(role="tool", content="a tree"),
        Message(role="assistant", content="A tree.", thinking="I saw"),
    )
    row = Conversation(messages=messages, mode="think", source="rows", row=0, tools=(TOOL,))
    template = template_of("qwen3", llama_tokenizer, tmp_path)
    rows = render_rows(template, row, "assistant")
    assert [len(item.spans) for item in rows] == [1, 2]


def test_mistrals_calls_are_learnt_and_their_results_are_not(
    llama_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """After the last question nothing is rewritten, so the call and the answer share a row."""
    call = {"type": "function", "function": {"name": "look", "arguments": {"where": "here"}}}
    messages = (
        *conversation("no_think", 1, tools=True).messages,
        Message(role="user", content="Look."),
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="a tree"),
        Message(role="assistant", content="A tree."),
    )
    row = Conversation(messages=messages, mode="no_think", source="rows", row=0, tools=(TOOL,))
    template = template_of("mistral-3", llama_tokenizer, tmp_path)
    first, second = render_rows(template, row, "assistant")
    end = llama_tokenizer.eos_token
    assert [first.text[slice(*span)] for span in first.spans] == [f" answer 0{end}"]
    assert [second.text[slice(*span)] for span in second.spans] == [
        f'[TOOL_CALLS] [{{"name": "look", "arguments": {{"where": "here"}}}}]{end}',
        f" A tree.{end}",
    ]
    assert first.text.count("[AVAILABLE_TOOLS]") == second.text.count("[AVAILABLE_TOOLS]") == 1
    assert '[TOOL_RESULTS] {"content": "a tree"}[/TOOL_RESULTS] A tree.' in second.text


@pytest.mark.parametrize("name", sorted(NO_TOOLS))
def test_tools_that_a_template_loses_are_refused(
    name: str, llama_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    template = template_of(name, llama_tokenizer, tmp_path)
    refusal = r"rows, row 0: .* look is.* \[tools_(lost|as_repr)\]"
    with pytest.raises(TemplateError, match=refusal):
        render_rows(template, conversation("no_think", 1, tools=True), "assistant")


@pytest.mark.parametrize("name", ["chatml", "smollm3", "gemma3", "mistral"])
def test_calls_that_a_template_loses_are_refused(
    name: str, llama_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"where": "here"}}}
    messages = (
        Message(role="user", content="Look."),
        Message(role="assistant", content="Well.", tool_calls=(call,)),
    )
    row = Conversation(messages=messages, mode="no_think", source="rows", row=4, tools=(TOOL,))
    with pytest.raises(
        TemplateError, match=r"rows, row 4, message 1: .*leaves out the call of look"
    ):
        render_rows(template_of(name, llama_tokenizer, tmp_path), row, "assistant")


def test_an_answer_that_cannot_be_told_from_its_thinking_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.jinja"
    path.write_text(
        "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}{{ m.reasoning_content }} "
        "{% endif %}{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    template = load_template(str(path))
    row = conversation("think", 1, tools=False)
    assert render_row(template, row, "assistant").spans
    for policy in ("answers", "thinking"):
        with pytest.raises(TemplateError, match="where the thinking ends can't be told"):
            render_row(template, row, policy)


@pytest.mark.parametrize("name", ["dualign", "chatml", "smollm3-training"])
def test_the_indent_of_an_answer_is_the_answers(name: str) -> None:
    turns = (
        Message(role="user", content="Go on."),
        Message(role="assistant", content="    return x", thinking="why"),
    )
    row = Conversation(messages=turns, mode="think", source="rows", row=0)
    spans = {}
    parts: tuple[Supervise, ...] = ("answers", "thinking")
    for supervise in parts:
        rendered = render_row(load_template(name), row, supervise)
        ((start, stop),) = rendered.spans
        spans[supervise] = rendered.text[start:stop]
    assert spans["answers"] == "    return x<|im_end|>"
    assert spans["thinking"].endswith("why\n</think>\n\n")
