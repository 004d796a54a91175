"""The real SmolLM2 tokenizer, with tokens added in one model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from dualign.checkpoints.checkpoint import Checkpoint
from tests.checkpoints.folders import read

from .test_vocabulary import EMBED, merge, soup

TEXTS = [
    "Il était une fois, 12.5 % of 3x² — naïve café\n\n\tdef f(x):\n        return x",
    "<|im_start|>user\nWhat is 17 * 23?<|im_end|>\n<|im_start|>assistant\n",
    "日本語のテキスト 🙂 and <think>plain</think> words, a <tool> call",
]
NEW = ["<think>", "</think>", "<tool>"]


def tiny(folder: Path, embedded: Path, seed: int, added: list[str]) -> Path:
    """A tiny model with the real tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(embedded)
    tokenizer.add_tokens(added[:2], special_tokens=True)
    tokenizer.add_tokens(added[2:])
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=64,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_texts_are_cut_as_before_and_rows_are_at_their_tokens(
    tmp_path: Path, embedded: Path
) -> None:
    a = tiny(tmp_path / "a", embedded, 1, [])
    b = tiny(tmp_path / "b", embedded, 2, NEW)
    c = tiny(tmp_path / "c", embedded, 3, NEW[::-1])
    out = merge(tmp_path, soup("a", "b", "c", more="tokenizer_source: union\nconfig_from: a"))
    merged, mine, theirs, others = (AutoTokenizer.from_pretrained(item) for item in (out, a, b, c))
    for text in TEXTS:
        ids = merged(text)["input_ids"]
        assert merged.convert_ids_to_tokens(ids) == theirs.tokenize(text)
        assert merged.decode(ids) == text
        if not any(token in text for token in NEW):
            assert ids == mine(text)["input_ids"]
    rows, A, B, C = (read(item)[EMBED].astype(np.float64) for item in (out, a, b, c))
    assert rows.shape[0] == 49152 + 3
    np.testing.assert_allclose(rows[:49152], (A + B[:49152] + C[:49152]) / 3, atol=1e-7)
    for token in NEW:
        here, there, other = (
            item.convert_tokens_to_ids(token) for item in (merged, theirs, others)
        )
        # a has no row for it, and gets the mean of the two that do.
        np.testing.assert_allclose(rows[here], (B[there] + C[other]) / 2, atol=1e-7)


@pytest.mark.slow
def test_the_real_model_with_added_tokens_merges_into_itself(
    tmp_path: Path, embedded: Path
) -> None:
    a = tmp_path / "a"
    tokenizer = AutoTokenizer.from_pretrained(embedded)
    model = AutoModelForCausalLM.from_pretrained(embedded, dtype=torch.bfloat16)
    model.save_pretrained(a)
    tokenizer.save_pretrained(a)
    tokenizer.add_tokens(NEW)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "b")
    tokenizer.save_pretrained(tmp_path / "b")
    out = merge(tmp_path, soup("a", "b", more="tokenizer_source: union"))
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 49155
    # The average of two equal rows is that row, and the new ones are only in b.
    merged, expected = Checkpoint(out), Checkpoint(tmp_path / "b")
    for name, entry in expected.entries.items():
        found = merged.reader(name).read(0, entry.size)
        assert np.array_equal(found, expected.reader(name).read(0, entry.size)), name
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    ids = torch.tensor([AutoTokenizer.from_pretrained(out)(TEXTS[2])["input_ids"]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    shutil.rmtree(tmp_path)
