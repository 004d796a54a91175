"""Every planted defect of a saved directory is found; a model and an adapter as stages leave them have none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from dualign import diagnose
from dualign.doctor.doctor import diagnose_model
from dualign.models.tokenizer import sync_special_tokens
from tests.doctor.defective_directories import PLANTED, Planted

RUN = {
    "kind": "sft",
    "config": {"template": "dualign", "template_kwargs": {}},
    "rows": {"in": 9, "kept": 7, "dropped": {"too_long": 2}, "by": []},
    "checks": {"reload_max_logit_difference": 0.0},
}


@pytest.fixture(scope="session")
def saved(formats: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny `model` and an `adapter` on a hub id, as stages leave them."""
    root = tmp_path_factory.mktemp("saved")
    tokenizer, _ = formats("dualign")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "tie_word_embeddings": True}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads))
    sync_special_tokens(model, tokenizer)
    for name in ("model", "adapter"):
        tokenizer.save_pretrained(root / name)
        model.generation_config.save_pretrained(root / name)
        (root / name / "run.json").write_text(json.dumps(RUN), encoding="utf-8")
    model.save_pretrained(root / "model")
    lora = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    lora.peft_config["default"].base_model_name_or_path = "owner/base"
    lora.save_pretrained(root / "adapter", save_embedding_layers=False)
    return root


@pytest.mark.parametrize("name", ["model", "adapter"])
def test_what_a_stage_leaves_has_no_fault(name: str, saved: Path) -> None:
    found = diagnose_model(str(saved / name))
    assert found.findings.all() == []
    assert found.rows["kept"] == 7


@pytest.mark.parametrize("planted", PLANTED, ids=lambda item: item.make.__name__)
def test_a_planted_defect_of_a_directory_is_found(
    planted: Planted, saved: Path, tmp_path: Path
) -> None:
    for name in ("model", "adapter"):
        shutil.copytree(saved / name, tmp_path / name)
    folder = tmp_path / ("adapter" if planted.adapter else "model")
    planted.make(folder)
    findings = diagnose_model(str(folder)).findings
    assert planted.code in {finding.code for finding in findings.all()}


@pytest.mark.parametrize("name", ["model", "adapter"])
def test_weights_are_read_for_nan_when_asked(name: str, saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved / name, tmp_path / name)
    assert diagnose_model(str(folder), tensors=True).findings.all() == []
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    assert diagnose_model(str(folder)).findings.all() == []
    found = diagnose(folder, tensors=True).findings.all()
    assert [finding.code for finding in found] == ["weights_not_finite"]
    assert found[0].message.endswith(" holds 1 NaN or infinite values")


def test_the_embedded_model_pads_with_its_end_of_turn() -> None:
    findings = diagnose_model("embedded:smollm2-135m-instruct").findings
    assert [finding.code for finding in findings.all() if finding.severity == "error"] == [
        "pad_is_end_of_turn"
    ]
