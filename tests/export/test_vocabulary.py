"""Vocabularies: llama.cpp's name for how text is cut, the kinds of tokens, who adds the first token."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dualign.errors import CheckpointError
from dualign.export.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED, vocabulary_of

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
CHAT = "{{ bos_token if bos }}{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"


def tokenizer(
    *rules: Any, normalizer: Any = None, ignore_merges: bool = False, adds_bos: bool = False
) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    backend = Tokenizer(
        BPE({**vocabulary, "ab": 256}, [("a", "b")], ignore_merges=ignore_merges, unk_token=None)
    )
    backend.pre_tokenizer = rules[0] if len(rules) == 1 else pre_tokenizers.Sequence(list(rules))
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("<|end|>")])
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            "<s> $A", special_tokens=[("<s>", 257)]
        )
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<|end|>")
    made.chat_template = CHAT
    return made


def level(*, regex: bool) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)


def split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


@pytest.mark.parametrize(
    ("rules", "options", "name"),
    [
        ([level(regex=True)], {}, "gpt-2"),
        ([pre_tokenizers.Digits(individual_digits=True), level(regex=True)], {}, "smollm"),
        ([split(LLAMA3), level(regex=False)], {"ignore_merges": True}, "llama-bpe"),
        ([split(LLAMA3), level(regex=False)], {}, "smaug-bpe"),
        ([split(QWEN2), level(regex=False)], {"normalizer": normalizers.NFC()}, "qwen2"),
    ],
)
def test_the_rule_that_cuts_text_has_llama_cpps_name(
    rules: list[Any], options: dict[str, Any], name: str
) -> None:
    assert vocabulary_of(tokenizer(*rules, **options), 300, "m").pre == name


@pytest.mark.parametrize(
    ("rules", "options"),
    [
        ([split(LLAMA3.replace("1,3", "1,2")), level(regex=False)], {}),
        ([pre_tokenizers.Digits(individual_digits=False), level(regex=True)], {}),
        ([pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)], {}),
        ([pre_tokenizers.Whitespace()], {}),
        ([level(regex=True)], {"normalizer": normalizers.Lowercase()}),
    ],
)
def test_another_rule_is_refused(rules: list[Any], options: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"m: tokenizer.json splits text by .*LLAMA_CPP_DIR"):
        vocabulary_of(tokenizer(*rules, **options), 300, "m")


def test_another_kind_of_tokenizer_is_refused() -> None:
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    words.chat_template = CHAT
    with pytest.raises(CheckpointError, match="tokenizer model WordLevel; expected byte-level BPE"):
        vocabulary_of(words, 1, "m")


def test_tokens_have_their_kinds_and_rows_without_a_token_are_unused() -> None:
    found = vocabulary_of(tokenizer(level(regex=True)), 262, "m")
    assert found.tokens[256:] == ["ab", "<s>", "<|end|>", "<think>", "[PAD260]", "[PAD261]"]
    assert found.types[256:] == [NORMAL, CONTROL, CONTROL, USER_DEFINED, UNUSED, UNUSED]
    assert found.merges == ["a b"]
    assert found.ids == {"bos": 257, "eos": 258, "eot": 258}


def test_a_tokenizer_larger_than_the_embedding_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"token 259 \('<think>'\), the embedding only 259"):
        vocabulary_of(tokenizer(level(regex=True)), 259, "m")


@pytest.mark.parametrize("template_has_it", [False, True])
@pytest.mark.parametrize("tokenizer_adds_it", [False, True])
def test_a_chat_begins_as_its_template_says(template_has_it: bool, tokenizer_adds_it: bool) -> None:
    made = tokenizer(level(regex=True), adds_bos=tokenizer_adds_it)
    made.chat_template = CHAT.replace(" if bos", "" if template_has_it else " if false")
    found = vocabulary_of(made, 300, "m")
    assert found.add_bos is (template_has_it and tokenizer_adds_it)


def test_the_embedded_models_first_token_is_left_to_its_template(embedded: Path) -> None:
    found = vocabulary_of(AutoTokenizer.from_pretrained(embedded), 49152, "m")
    assert (found.add_bos, found.ids["eos"], len(found.merges)) == (False, 2, 48900)
