"""A tokenizer as GGUF holds it: tokens, their kinds, merges, special ids, and how text is cut first.

Only byte-level BPE is written. llama.cpp doesn't read the rule that cuts text into words, it has
some by name; the name is found by comparing the rule itself, so a tokenizer with another rule is
refused instead of being cut by the wrong one.
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
class Vocabulary:
    """What the tokenizer's part of a GGUF file says."""

    pre: str
    """llama.cpp's name for how text is cut into words"""
    tokens: list[str]
    types: list[int]
    merges: list[str]
    ids: Mapping[str, int]
    """special tokens: bos, eos, eot (end of turn), unknown, padding"""
    add_bos: bool
    """whether a prompt gets the beginning-of-text token: as the chat template has it, not as the
    tokenizer adds it to plain text"""
    chat_template: str


def vocabulary_of(tokenizer: "PreTrainedTokenizerBase", size: int, place: str) -> Vocabulary:
    """The vocabulary of `size` rows of the embedding; rows without a token become unused ones.

    Raises:
        CheckpointError: llama.cpp would cut text in another way, or the tokenizer is of another kind.
    """
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
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    return Vocabulary(
        pre=pre,
        tokens=tokens,
        types=types,
        merges=merges,
        ids=_special_ids(tokenizer),
        add_bos=_chat_adds_bos(tokenizer),
        chat_template=str(tokenizer.get_chat_template()),
    )


def _pre(rules: Mapping[str, Any], place: str) -> str:
    """llama.cpp's name of the rule that cuts text."""
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
            f"{place}: tokenizer.json cuts text by {shown[:300]}; llama.cpp has no such rule that "
            "dualign knows (there: GPT-2's, SmolLM's, Llama 3's, Qwen2's); set LLAMA_CPP_DIR to use "
            "llama.cpp's own converter"
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
    from dualign.models.loading import end_of_turn

    ids = {name: getattr(tokenizer, f"{ours}_token_id") for name, ours in _IDS.items()}
    try:
        end = end_of_turn(load_template("tokenizer", tokenizer=tokenizer), tokenizer)
        ids["eot"] = tokenizer.convert_tokens_to_ids(end)
    except TemplateError:  # turns that end in plain text: there is no token to name
        pass
    return {name: int(number) for name, number in ids.items() if number is not None}


def _chat_adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """llama.cpp puts the token before each prompt, a chat's too: right only where the template
    starts with it as well (then it isn't doubled).
    """
    if tokenizer.bos_token is None or tokenizer("Hi")["input_ids"][0] != tokenizer.bos_token_id:
        return False
    asked = [{"role": "user", "content": "Hi"}]
    prompt = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    return prompt.startswith(tokenizer.bos_token)
