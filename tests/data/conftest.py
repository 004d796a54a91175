"""A tokenizer trained on the spot, tiny models, and files of rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<|end_of_text|>", "<bos>"]
# The turns of Gemma's and Llama-3's templates.
SPECIALS += [
    "<start_of_turn>",
    "<end_of_turn>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
# How Llama-3 and Qwen cut text before merging; GPT-2 and SmolLM2 cut it otherwise, at newlines above all.
LLAMA_CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "<think>\n\n</think>\nHello there, how are you?\n\nI am fine. The sum of 12 and 7 is 19.",
    "user\nassistant\nsystem\n/think\n/no_think\n<think>\nFirst, count the apples: 3 + 4 = 7.\n</think>\n\nSeven.",
    "    def f(x):\n        return x\n\n\nprint(f(3))\n",
] * 20


def train_tokenizer(*, gpt2_cuts: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 tokens with ChatML's special tokens."""
    core = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2_cuts)
    split = pre_tokenizers.Split(Regex(LLAMA_CUTS), behavior="isolated")
    core.pre_tokenizer = byte_level if gpt2_cuts else pre_tokenizers.Sequence([split, byte_level])
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=gpt2_cuts)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(gpt2_cuts=True)


@pytest.fixture(scope="session")
def llama_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(gpt2_cuts=False)


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[list[dict[str, Any]], str], Path]:
    def write(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(autouse=True, scope="session")
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What `datasets` writes stays out of the user's cache."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = str(tmp_path_factory.mktemp("datasets"))
