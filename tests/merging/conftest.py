"""Tiny checkpoints of one architecture, with a tokenizer, to merge."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

WORDS = ("<pad>", "<end>", "<unk>", "one", "two", "three")
MakeModel = Callable[..., Path]


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """`make_model("a", seed=1, rope_theta=5e5)` -> its folder, other config keys by name."""

    def make(
        name: str,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        words: tuple[str, ...] | None = WORDS,
        template: str = "{{ messages }}",
        **config: Any,
    ) -> Path:
        torch.manual_seed(seed)
        settings = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24}
        settings |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
        settings |= {"max_position_embeddings": 32, "tie_word_embeddings": True, **config}
        model = AutoModelForCausalLM.from_config(LlamaConfig(**settings)).to(dtype)
        model.save_pretrained(tmp_path / name)
        if words:
            make_tokenizer(words, template).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def make_tokenizer(words: tuple[str, ...], template: str) -> PreTrainedTokenizerFast:
    model = WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>")
    special = {"pad_token": "<pad>", "eos_token": words[1], "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special)
    tokenizer.chat_template = template
    return tokenizer
