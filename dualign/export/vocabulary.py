"""A tokenizer as GGUF holds it: tokens, their types, merges, special ids and the pre-tokenizer.

Only byte-level BPE is written. llama.cpp doesn't read the rule that splits text into words; it has
some rules built in, by name. The name is looked up by the rule itself, so a tokenizer with an
unknown rule is refused instead of being split by a wrong one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dualign.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# llama.cpp's token types
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_SPLITS = {
    _CONTRACTIONS + _WORDS % "{1,3}": "llama-bpe",
    _CONTRACTIONS + _WORDS % "": "qwen2",
}
_IDS = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}


@dataclass(frozen=True, kw_only=True, slots=True)
class GGUFVocabulary:
    """Tokenizer section of a GGUF file."""

    pre: str
    """llama.cpp's name of the pre-tokenizer, the rule that splits text into words"""
    tokens: list[str]
    types: list[int]
    merges: list[str]
    ids: Mapping[str, int]
    """special tokens: bos, eos, eot (end of turn), unknown, padding"""
    add_bos: bool
    """prepend the bos token to a prompt: as the chat template does, not as the tokenizer does for
    plain text"""
    chat_template: str
    more_templates: Mapping[str, str]
    """named templates besides it, such as tool_use"""


def vocabulary_of(tokenizer: "PreTrainedTokenizerBase", size: int, place: str) -> GGUFVocabulary:
    """Return the vocabulary for `size` embedding rows; rows without a token become unused tokens.

    Raises:
        CheckpointError: not byte-level BPE, or llama.cpp would split text otherwise.
    """
    from dualign.data.text.template_texts import named_templates

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(f"{place}: a slow tokenizer; expected one with a tokenizer.json")
    rules = json.loads(backend.to_str())
    model = rules["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise CheckpointError(
            f"{place}: tokenizer model {model['type']}; expected byte-level BPE, as GPT-2's"
        )
    pre = _pre(rules, place)
    tokens, types = _tokens(tokenizer, size, place)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return GGUFVocabulary(
        pre=pre,
        tokens=tokens,
        types=types,
        merges=merges,
        ids=_special_ids(tokenizer),
        add_bos=_chat_adds_bos(tokenizer),
        chat_template=str(tokenizer.get_chat_template()),
        more_templates={
            name: text for name, text in named_templates(tokenizer).items() if name != "default"
        },
    )


def _pre(rules: Mapping[str, Any], place: str) -> str:
    """Return llama.cpp's name of the pre-tokenizer."""
    normalizer = rules.get("normalizer") or {}
    steps = _steps(rules.get("pre_tokenizer"))
    kinds = [step["type"] for step in steps]
    regex = bool(steps and steps[-1].get("use_regex", True))
    name = None
    if kinds[-1:] == ["ByteLevel"] and not steps[-1].get("add_prefix_space"):
        if kinds == ["ByteLevel"] and regex:
            name = "gpt-2"
        elif kinds == ["Digits", "ByteLevel"] and regex and steps[0].get("individual_digits"):
            name = "smollm"
        elif kinds == ["Split", "ByteLevel"] and not regex and steps[0]["behavior"] == "Isolated":
            name = _SPLITS.get(steps[0]["pattern"].get("Regex"))
    if name == "llama-bpe" and not rules["model"].get("ignore_merges"):
        name = "smaug-bpe"
    if name is None or normalizer.get("type", "NFC") != "NFC":
        shown = json.dumps([normalizer or None, rules.get("pre_tokenizer")])
        raise CheckpointError(
            f"{place}: tokenizer.json splits text by {shown[:300]}; dualign knows llama.cpp's rules "
            "for GPT-2, SmolLM, Llama 3 and Qwen2; set LLAMA_CPP_DIR to use llama.cpp's own converter"
        )
    return name


def _steps(rule: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if rule is None:
        return []
    return list(rule["pretokenizers"]) if rule["type"] == "Sequence" else [rule]


def _tokens(
    tokenizer: "PreTrainedTokenizerBase", size: int, place: str
) -> tuple[list[str], list[int]]:
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    if max(by_id) >= size:
        raise CheckpointError(
            f"{place}: the tokenizer has token {max(by_id)} ({by_id[max(by_id)]!r}), the embedding "
            f"only {size} rows; resize the embedding"
        )
    added = tokenizer.added_tokens_decoder
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(size)]
    types = [
        UNUSED if number not in by_id else _type(added.get(number), tokens[number])
        for number in range(size)
    ]
    return tokens, types


def _type(added: Any, token: str) -> int:
    if added is None:
        return NORMAL
    named = token.startswith("<|") and token.endswith("|>")
    return CONTROL if added.special or named else USER_DEFINED


def _special_ids(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    from dualign.data.text.template import load_template
    from dualign.errors import TemplateError
    from dualign.models.tokenizer import end_of_turn

    ids = {name: getattr(tokenizer, f"{attribute}_token_id") for name, attribute in _IDS.items()}
    try:
        end = end_of_turn(load_template("tokenizer", tokenizer=tokenizer), tokenizer)
        ids["eot"] = tokenizer.convert_tokens_to_ids(end)
    except TemplateError:  # turns end in plain text, so there is no token
        pass
    return {name: int(number) for name, number in ids.items() if number is not None}


def _chat_adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether both tokenizer and chat template begin a prompt with the bos token.

    llama.cpp prepends it to every prompt, also to a chat's, but doesn't double it.
    """
    if tokenizer.bos_token is None or tokenizer("Hi")["input_ids"][0] != tokenizer.bos_token_id:
        return False
    chat = [{"role": "user", "content": "Hi"}]
    prompt = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    return prompt.startswith(tokenizer.bos_token)
