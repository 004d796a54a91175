"""Tiny models of real kinds, with a small tokenizer that cuts text as SmolLM's does, and a template of ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from dualign.data.text.template import load_template

Make = Callable[..., Path]
KINDS: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 5e6,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}


VOCABULARY = 1024
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 1024 tokens, learned from this repository's license."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    backend.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )


@pytest.fixture(scope="session")
def make(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Saves a tiny model of a kind, with weights large enough that greedy answers vary."""

    def made(
        kind: str,
        *,
        template: str = "dualign",
        speech: PreTrainedTokenizerBase = tokenizer,
        **settings: Any,
    ) -> Path:
        config_class, model_class = KINDS[kind]
        torch.manual_seed(0)
        config = config_class(
            **{
                "vocab_size": len(speech),
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "max_position_embeddings": 256,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": 0,
                "tie_word_embeddings": True,
                "initializer_range": 0.3,
                **settings,
            }
        )
        folder = tmp_path_factory.mktemp(kind) / f"tiny-{kind}"
        model_class(config).save_pretrained(folder)
        known = template in ("dualign", "smollm3", "chatml")
        speech.chat_template = load_template(template).text if known else template
        speech.save_pretrained(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def tiny_llama(make: Make) -> Path:
    return make("llama")


@pytest.fixture(scope="session")
def tiny_smollm3(make: Make) -> Path:
    """NoPE in layer 3, YaRN from 64 to 256 tokens."""
    return make("smollm3", template="smollm3", rope_parameters=YARN)
