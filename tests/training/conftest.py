"""Tiny but real: a trained byte-level tokenizer, two-layer models on disk, and rows of both modes."""

import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sum_rows(count: int, seed: int = 0) -> list[dict]:
    """Half think, half no_think: the sum of three numbers."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        a, b, c = (draw.randrange(1, 20) for _ in range(3))
        mode = "think" if i % 2 else "no_think"
        answer = {"role": "assistant", "content": str(a + b + c)}
        if mode == "think":
            answer["reasoning_content"] = f"{a} + {b} = {a + b}\n{a + b} + {c} = {a + b + c}"
        rows.append(
            {"messages": [{"role": "user", "content": f"Add {a}, {b}, {c}."}, answer], "mode": mode}
        )
    return rows


def pair_rows(count: int, seed: int = 1) -> list[dict]:
    """Pairs in both modes: the right sum against one that is off by one."""
    rows = []
    for row in sum_rows(count, seed):
        prompt, right = row["messages"]
        wrong = {**right, "content": str(int(right["content"]) + 1)}
        rows.append(
            {"prompt": [prompt], "chosen": [right], "rejected": [wrong], "mode": row["mode"]}
        )
    return rows


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    text = [json.dumps(row) for row in sum_rows(400)] + [
        "<think>\n\n</think>\n\n /think /no_think user assistant system"
    ] * 20
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL[1:2],
    )


def save_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    *,
    kind: str = "llama",
    seed: int = 0,
    **changes: object,
) -> Path:
    """A model folder. `kind`: llama or smollm3 (with NoPE layers); embeddings tied."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4 if kind == "smollm3" else 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        **changes,
    }
    model = (
        SmolLM3ForCausalLM(SmolLM3Config(**sizes))
        if kind == "smollm3"
        else LlamaForCausalLM(LlamaConfig(**sizes))
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder with a tiny model and rows of both modes."""
    folder = tmp_path_factory.mktemp("ground")
    save_model(folder / "model", tokenizer, kind="smollm3")
    write_rows(folder / "train.jsonl", sum_rows(120))
    write_rows(folder / "pairs.jsonl", pair_rows(40))
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"), tokenizer)


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl and pairs.jsonl."""
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train.jsonl", sum_rows(120))
    write_rows(folder / "pairs.jsonl", pair_rows(40))
    return folder
