"""A model with new tokens is published: its files load, its logits are the run's, and the card names them."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from dualign import engine
from dualign.cli.main import main
from dualign.recipe import load_recipe
from tests.publish.conftest import TRAIN
from tests.training.conftest import sum_rows, write_rows


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weights", "adapter"])
def test_what_is_published_has_the_tokens(
    learnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    tokenizer, model = (
        AutoTokenizer.from_pretrained(learnt),
        AutoModelForCausalLM.from_pretrained(learnt),
    )
    if kind == "adapter":
        model.resize_token_embeddings(len(tokenizer) + 8, mean_resizing=False)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "base")
    write_rows(tmp_path / "rows.jsonl", sum_rows(12))
    stage = {"name": "sft", "kind": "sft", "model": str(tmp_path / "base"), "train": TRAIN}
    stage |= {"data": {"sources": [{"path": "rows.jsonl"}], "max_tokens": 256}}
    stage |= {"add_tokens": ["Add", {"text": "<ticket>", "description": "sum"}]}
    stage |= {"lora": {"r": 2}} if kind == "adapter" else {}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"output_dir": str(tmp_path / "out"), "stages": [stage]}))
    (run,) = engine.run(load_recipe(recipe, []), say=lambda _: None)
    words = ["publish", str(run), "someone/tiny", "--license", "apache-2.0", "--language", "en"]
    words += ["--base", f"acme/base@{'a' * 40}", "--allow", "base_weights"]
    assert main([*words, "--out", str(tmp_path / "copy")]) == 0
    card = (tmp_path / "copy" / "README.md").read_text()
    assert "It has tokens that its base hasn't" in card
    assert "new tokens Add," in card
    assert ("dualign adapter fold" in card) == (kind == "adapter"), "servers take no such adapter"
    assert "<ticket>" in AutoTokenizer.from_pretrained(tmp_path / "copy").get_vocab()
