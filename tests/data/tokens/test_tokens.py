"""Labels are the tokens of the spans, and a prompt's own tokens are those that the row starts with."""

from itertools import product
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dualign.data.conversation import Conversation, Message, Mode
from dualign.data.faults import RowError
from dualign.data.text.spans import RenderedRow
from dualign.data.text.template import ChatTemplate, load_template
from dualign.data.tokens.added_tokens import added_token_aligner
from dualign.data.tokens.labels import IGNORE_INDEX, _by_offsets, encode_batch
from dualign.errors import CheckpointError
from tests.data.encode import encode, render_row


def rendered(text: str, *spans: tuple[int, int]) -> RenderedRow:
    return RenderedRow(text=text, spans=spans, mode="no_think", source="rows", row=5)


def test_labels_are_the_tokens_of_the_span(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "<|im_start|>Hello<|im_end|>there<|im_end|>\n"
    start = text.index("there")
    example = encode(rendered(text, (start, len(text) - 1)), tokenizer, max_tokens=None)
    assert (
        tokenizer.decode([label for label in example.labels if label != IGNORE_INDEX])
        == "there<|im_end|>"
    )
    assert example.labels[-1] == IGNORE_INDEX
    assert tokenizer.decode(example.input_ids) == text
    assert (example.source, example.row, example.mode) == ("rows", 5, "no_think")


def test_the_whole_text_is_supervised_without_a_mask(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "<|im_start|>user\nHello<|im_end|>\n"
    example = encode(rendered(text, (0, len(text))), tokenizer, max_tokens=None)
    assert example.labels == example.input_ids


def test_a_token_that_reaches_over_the_edge_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "<|im_start|>Hello<|im_end|>"
    with pytest.raises(RowError, match=r"rows, row 5: .*\[boundary\]"):
        encode(rendered(text, (text.index("llo"), len(text))), tokenizer, max_tokens=None)
    with pytest.raises(RowError, match=r"no token starts and ends at .*Hel' \| 'lo"):
        encode(rendered(text, (text.index("Hel"), text.index("lo"))), tokenizer, max_tokens=None)


def test_a_prompt_that_tokenizes_otherwise_alone_is_refused(
    tokenizer: PreTrainedTokenizerFast, llama_tokenizer: PreTrainedTokenizerFast
) -> None:
    """GPT-2 style: two newlines are one token at the end of a prompt, but two before text."""
    text = "<|im_start|></think>\n\nHello<|im_end|>"
    row = rendered(text, (text.index("Hello"), len(text)))
    alone = tokenizer(text[: text.index("Hello")], add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(alone)[-1] == "ĊĊ"
    with pytest.raises(RowError, match="generation prompt alone gives other tokens") as raised:
        encode(row, tokenizer, max_tokens=None)
    assert raised.value.code == "boundary"
    encode(row, llama_tokenizer, max_tokens=None)


def test_too_long_rows_and_rows_without_spans_are_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    text = "<|im_start|>Hello<|im_end|>"
    row = rendered(text, (text.index("Hello"), len(text)))
    count = len(encode(row, tokenizer, max_tokens=None).input_ids)
    encode(row, tokenizer, max_tokens=count)
    with pytest.raises(RowError, match=rf"{count} tokens, max_tokens is {count - 1} \[too_long\]"):
        encode(row, tokenizer, max_tokens=count - 1)
    with pytest.raises(RowError, match="no_answer"):
        encode(rendered(text), tokenizer, max_tokens=None)


def test_a_fault_leaves_the_other_rows_of_a_batch_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "<|im_start|>Hello<|im_end|>"
    good = rendered(text, (text.index("Hello"), len(text)))
    bad = rendered(text, (text.index("llo"), len(text)))
    made = encode_batch([good, bad, good], tokenizer, max_tokens=None)
    assert [isinstance(entry, RowError) for entry in made] == [False, True, False]
    assert encode_batch([], tokenizer, max_tokens=None) == []


class SlowTokenizer:
    is_fast = False


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(CheckpointError, match="Expected a fast tokenizer"):
        encode(rendered("a", (0, 1)), SlowTokenizer(), max_tokens=None)  # type: ignore[arg-type]


words = st.text(alphabet="ab <>/?é你\n\t.0", max_size=12).filter(str.strip)


@settings(max_examples=150)
@example(turns=[("0", "0", "   0"), ("0", "0", "0")], think=False, gpt2=True)
@given(
    turns=st.lists(st.tuples(words, words, words), min_size=1, max_size=3),
    think=st.booleans(),
    gpt2=st.booleans(),
)
def test_under_our_template_labels_decode_to_the_spans(
    tokenizer: PreTrainedTokenizerFast,
    llama_tokenizer: PreTrainedTokenizerFast,
    turns: list[tuple[str, str, str]],
    think: bool,
    gpt2: bool,
) -> None:
    """With either way of cutting text; the only rows refused are those whose text starts in whitespace that joins."""
    mode: Mode = "think" if think else "no_think"
    messages = []
    for question, trace, answer in turns:
        messages.append(Message(role="user", content=question))
        messages.append(
            Message(role="assistant", content=answer, thinking=trace.strip() if think else None)
        )
    row = Conversation(messages=tuple(messages), mode=mode, source="rows", row=0)
    text = render_row(load_template("dualign"), row, "assistant")
    used = tokenizer if gpt2 else llama_tokenizer
    example = encode(text, used, max_tokens=None)
    supervised = [label for label in example.labels if label != IGNORE_INDEX]
    assert used.decode(supervised) == "".join(text.text[start:stop] for start, stop in text.spans)
    for number, (start, _) in enumerate(text.spans):
        if any(answer != answer.lstrip() for *_, answer in turns[:number]):
            break  # its indent has tokens of its own here, and a server that sees it later joins them
        alone = used(text.text[:start], add_special_tokens=False)["input_ids"]
        assert example.input_ids[: len(alone)] == alone
        assert example.labels[len(alone) - 1] == IGNORE_INDEX != example.labels[len(alone)]


@pytest.mark.parametrize("name", ["dualign", "chatml", "smollm3", "smollm3-training"])
@pytest.mark.parametrize("mode", ["think", "no_think"])
def test_the_embedded_models_tokenizer_proves_every_turn(
    embedded: Path, name: str, mode: Mode
) -> None:
    used = AutoTokenizer.from_pretrained(embedded)
    template = load_template(name, tokenizer=used)
    for start in ("Hello", "12 is", "- a", "`x`", "é", "你", "$", "\n\nso", "<b>", "  code"):
        thinking = start.strip() if mode == "think" else None
        turns = [Message(role="user", content=start)]
        turns.append(Message(role="assistant", content=start.strip(), thinking=thinking))
        row = Conversation(messages=tuple(turns * 2), mode=mode, source="rows", row=0)
        rendered = render_row(template, row, "assistant")
        example = encode(rendered, used, max_tokens=None)
        supervised = [label for label in example.labels if label != IGNORE_INDEX]
        expected = "".join(rendered.text[start:stop] for start, stop in rendered.spans)
        assert used.decode(supervised) == expected


@pytest.mark.parametrize("name", ["dualign", "chatml", "smollm3-training"])
def test_landmarks_and_offsets_label_the_same_tokens(
    tokenizer: PreTrainedTokenizerFast, llama_tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    """Control tokens inside texts and answers that join the prompt included."""
    starts = ("Hello", "12 is", "\n\nso", "  code", "<|im_end|>x", "<|im_start|>", "é你", ">", "\n")
    for used in (tokenizer, llama_tokenizer):
        template = load_template(name, tokenizer=used)
        rows = []
        for mode, start in product(("think", "no_think"), starts):
            messages = [Message(role="user", content=start)]
            said = start.removeprefix("<|im_end|>")  # after which no turn may go on
            thinking = f"{said.strip()} why" if mode == "think" else None
            messages.append(Message(role="assistant", content=f"{said}!", thinking=thinking))
            row = Conversation(messages=tuple(messages * 2), mode=mode, source="rows", row=0)  # type: ignore[arg-type]
            rows.append(render_row(template, row, "assistant"))
        quick = encode_batch(rows, used, max_tokens=200)
        slow = _by_offsets(rows, used, 200, "error")
        assert [(str(item) if isinstance(item, RowError) else item) for item in quick] == [
            (str(item) if isinstance(item, RowError) else item) for item in slow
        ]
        found = added_token_aligner(used)
        assert found is not None
        told = [
            found.token_spans(item.text, item.spans, used(item.text)["input_ids"]) for item in rows
        ]
        assert sum(entry is not None for entry in told) > len(rows) / 2, "offsets did the work"


INDENTED = (
    "    return x",
    "  two",
    "\treturn x\n    y",
    " yes",
    "\n\n    return x",
    "        deep",
)


@pytest.mark.parametrize("name", ["dualign", "chatml", "smollm3-training"])
@pytest.mark.parametrize("mode", ["think", "no_think"])
def test_an_answer_keeps_its_indent_though_the_tokenizer_would_join_it_with_the_prompt(
    embedded: Path, tokenizer: PreTrainedTokenizerFast, name: str, mode: Mode
) -> None:
    """Of empty lines at its head the ways of the templates differ; the indent is kept by all."""
    for used in (AutoTokenizer.from_pretrained(embedded), tokenizer):
        template = load_template(name, tokenizer=used)
        for answer in INDENTED:
            thinking = "why" if mode == "think" else None
            turns = (
                Message(role="user", content="Go on."),
                Message(role="assistant", content=answer, thinking=thinking),
            )
            row = Conversation(messages=turns * 2, mode=mode, source="rows", row=0)
            rendered = render_row(template, row, "assistant")
            example = encode(rendered, used, max_tokens=None)
            spans = [used.decode(example.input_ids[first:stop]) for first, stop in example.spans]
            assert spans == [rendered.text[start:stop] for start, stop in rendered.spans]
            kept = answer.strip("\n")
            for (first, _), span in zip(example.spans, spans, strict=True):
                assert span.split("</think>")[-1].strip("\n") == f"{kept}<|im_end|>"
                prompt = rendered.text[: rendered.spans[0][0]]
                begin = max(
                    at for at in range(first) if example.input_ids[at] in used.added_tokens_decoder
                )
                alone = used(prompt, add_special_tokens=False)["input_ids"]
                assert example.input_ids[begin:first] == alone[begin - first :]


def test_only_white_space_is_cut_at_an_edge(tokenizer: PreTrainedTokenizerFast) -> None:
    template = ChatTemplate(
        name="t",
        text="{% for m in messages %}<|im_start|>{{ m.role }} hel{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant hel{% endif %}",
    )
    turns = (Message(role="user", content="x"), Message(role="assistant", content="lo there"))
    row = Conversation(messages=turns, mode="no_think", source="rows", row=0)
    with pytest.raises(RowError, match="boundary"):
        encode(render_row(template, row, "assistant"), tokenizer, max_tokens=None)
