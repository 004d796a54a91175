"""New tokens with LoRA: rows that PEFT trains, in an adapter that plain PEFT loads, or folded into the weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from dualign import engine
from dualign.checkpoints.adapters import fold
from dualign.errors import CheckpointError, DualignError
from dualign.models.loading import load_checkpoint
from dualign.recipe import load_recipe
from dualign.rundir import read_run
from tests.training.conftest import pair_rows, write_rows
from tests.training.test_new_tokens import TRAIN, plain_logits, variant, word_rows, write_recipe
from tests.training.test_preflight import refusal, run

__all__ = ["word_rows"]  # the fixture

TEXT = "<|im_start|>user\n<ticket> Add 3, 4 Zyklotron<|im_end|>\n"
LORA = {"r": 4}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerFast,
) -> Path:
    """A base with 16 rows to spare, as Qwen3 has 267."""
    folder = tmp_path_factory.mktemp("spare") / "base"
    return variant(folder, tokenizer, tied=request.param, rows=len(tokenizer) + 16)


@pytest.fixture(scope="module")
def sft(base: Path, word_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that holds the rows of two new tokens."""
    return run(write_recipe(tmp_path_factory.mktemp("sft"), base, word_rows, lora=LORA))


@pytest.fixture(scope="module")
def apo(sft: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """APO on that adapter."""
    folder = tmp_path_factory.mktemp("apo")
    return run(apo_recipe(folder, sft))


def apo_recipe(folder: Path, model: Path, **keys: Any) -> Path:
    rows = pair_rows(20)
    for row in rows:
        row["prompt"][0]["content"] += " Zyklotron <ticket>"
    write_rows(folder / "pairs.jsonl", rows)
    data = {"sources": [{"path": str(folder / "pairs.jsonl")}], "max_tokens": 160}
    stage = {"name": "apo", "kind": "preference", "model": str(model), "lora": {"r": 2}}
    stage |= {"data": {**data, "packing": "none"}, "train": {**TRAIN, "logging_steps": 1}, **keys}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"output_dir": str(folder / "out"), "stages": [stage]}))
    return path


def peft_logits(adapter: Path, text: str = TEXT) -> torch.Tensor:
    """As plain transformers and PEFT load an adapter on the base that it names."""
    named = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(named), adapter).eval()
    with torch.no_grad():
        ids = AutoTokenizer.from_pretrained(adapter)(text, return_tensors="pt")
        return model(**ids).logits


def rows_of(adapter: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(adapter / "adapter_model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if "token_adapter" in name}


def test_the_adapter_holds_the_rows_and_nothing_else_of_the_embedding(
    sft: Path, base: Path
) -> None:
    tied = json.loads((base / "config.json").read_text())["tie_word_embeddings"]
    count = len(AutoTokenizer.from_pretrained(base))
    trained = json.loads((sft / "adapter_config.json").read_text())["trainable_token_indices"]
    ids = [count, count + 1]
    assert trained == (ids if tied else {"model.embed_tokens": ids, "lm_head": ids})
    rows = rows_of(sft)
    assert len(rows) == (1 if tied else 2)
    start = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    pieces = AutoTokenizer.from_pretrained(base)("<ticket>")["input_ids"]
    for values in rows.values():
        assert values.shape == (2, 64)
        assert values.dtype == torch.float32
    embedding = next(values for name, values in rows.items() if "embed" in name)
    assert (embedding[0] - start[pieces].mean(0)).norm() > 1e-2, "it was trained"


def test_what_a_user_loads_is_the_live_model(sft: Path) -> None:
    checks = read_run(sft)["checks"]
    assert checks["saved"] == "adapter"
    assert checks["reload_max_logit_difference"] <= 1e-4


def test_folded_it_is_the_adapter(sft: Path, base: Path, tmp_path: Path) -> None:
    fold(base, sft, tmp_path / "folded")
    difference = plain_logits(tmp_path / "folded", TEXT) - peft_logits(sft)
    assert difference.abs().max() <= 1e-5


def test_apo_on_the_adapter_keeps_the_rows_and_adds_ranks(sft: Path, apo: Path) -> None:
    config = json.loads((apo / "adapter_config.json").read_text())
    assert config["r"] == 4 + 2
    before, after = rows_of(sft), rows_of(apo)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert read_run(apo)["checks"]["reload_max_logit_difference"] <= 1e-4
    first = json.loads((apo / "log.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(1.0, abs=1e-3), "the reference is the start model"
    assert (peft_logits(apo) - peft_logits(sft)).abs().max() > 1e-3


def test_apo_merged_is_the_adapter(sft: Path, apo: Path, tmp_path: Path) -> None:
    merged = run(apo_recipe(tmp_path, sft, save="merged"))
    assert (plain_logits(merged, TEXT) - peft_logits(apo)).abs().max() <= 1e-5


def test_without_spare_rows_the_adapter_is_refused_and_the_weights_are_saved(
    tokenizer: PreTrainedTokenizerFast, word_rows: Path, tmp_path: Path
) -> None:
    count = len(tokenizer)
    for name, tied in (("tied", True), ("untied", False)):
        place = tmp_path / name
        model = variant(place / "base", tokenizer, tied=tied)
        message = refusal(write_recipe(place, model, word_rows, lora=LORA))
        assert f"has {count} rows and the tokens need {count + 2}" in message
        assert "set save: merged" in message
        out = run(write_recipe(place, model, word_rows, lora=LORA, save="merged"))
        assert read_run(out)["checks"]["reload_max_logit_difference"] <= 1e-4
        assert json.loads((out / "config.json").read_text())["vocab_size"] == count + 2
        assert plain_logits(out, TEXT).shape[-1] == count + 2
        assert not (out / "adapter").exists(), "nobody could load it on its base"


def test_an_adapter_of_a_resized_base_is_refused_where_the_base_lacks_the_rows(
    sft: Path, base: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """As PEFT saves one after resize_token_embeddings, named with the base that has fewer rows."""
    tied = json.loads((base / "config.json").read_text())["tie_word_embeddings"]
    short = variant(tmp_path / "short", tokenizer, tied=tied)
    adapter = shutil.copytree(sft, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(short)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"row of token 385, and its base has 384 rows"):
        load_checkpoint(adapter)
    with pytest.raises(DualignError, match=r"row of token 385, and its base has 384 rows"):
        run(apo_recipe(tmp_path, adapter))
    fold(short, adapter, tmp_path / "folded")
    difference = plain_logits(tmp_path / "folded", TEXT)[..., :386] - peft_logits(sft)[..., :386]
    assert difference.abs().max() <= 1e-5, "a fold gives it the rows"


def test_a_low_rank_change_of_the_embedding_is_refused(
    base: Path, word_rows: Path, tmp_path: Path
) -> None:
    lora = {"r": 2, "target_modules": ["q_proj", "embed_tokens"]}
    with pytest.raises(DualignError, match=r"names model.embed_tokens, and a matrix gets new rows"):
        run(write_recipe(tmp_path, base, word_rows, lora=lora))


def test_a_low_rank_change_over_the_rows_of_an_earlier_adapter_is_refused_before_the_first_step(
    sft: Path, tmp_path: Path
) -> None:
    lora = {"r": 2, "target_modules": ["q_proj", "embed_tokens"]}
    message = refusal(apo_recipe(tmp_path, sft, lora=lora))
    assert "names model.embed_tokens, and a matrix gets new rows or a low-rank change" in message


def test_tokens_are_added_to_weights_not_to_an_adapter(
    sft: Path, word_rows: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, sft, word_rows, lora=LORA, add_tokens=["<other>"])
    assert "add_tokens: " in (message := refusal(recipe))
    assert "is an adapter; add the tokens in the stage that trained it" in message


def test_over_nf4_the_rows_are_trained_and_apo_starts_at_one(
    tokenizer: PreTrainedTokenizerFast, word_rows: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    model = variant(tmp_path / "base", tokenizer, rows=len(tokenizer) + 16)
    keys = {"lora": LORA, "quantization": "nf4"}
    first = run(write_recipe(tmp_path, model, word_rows, **keys))
    assert read_run(first)["checks"]["reload_rms_share"] <= 0.02
    (tmp_path / "apo").mkdir()
    second = run(apo_recipe(tmp_path / "apo", first, quantization="nf4"))
    assert rows_of(second).keys() == rows_of(first).keys()
    logged = json.loads((second / "log.jsonl").read_text().splitlines()[0])
    assert logged["loss"] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("spare", [0, 16], ids=["resized", "spare rows"])
def test_resumed_in_the_middle_it_ends_with_the_same_rows(
    tokenizer: PreTrainedTokenizerFast, word_rows: Path, tmp_path: Path, spare: int
) -> None:
    model = variant(tmp_path / "base", tokenizer, rows=len(tokenizer) + spare)
    keys = {"lora": {"r": 4}, "save": "merged"}
    calm = tmp_path / "calm"
    calm.mkdir()
    whole = run(write_recipe(calm, model, word_rows, **keys))
    paused = write_recipe(tmp_path, model, word_rows, pause_at_step=2, **keys)
    engine.run(load_recipe(paused, []), say=lambda _: None)
    resumed = run(write_recipe(tmp_path, model, word_rows, **keys))
    assert read_run(resumed)["resumed"] == 1
    files = [(folder / "model.safetensors").read_bytes() for folder in (whole, resumed)]
    assert files[0] == files[1]
