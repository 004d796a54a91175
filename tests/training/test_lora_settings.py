"""Each setting of an adapter goes through training, plain PEFT and folding to the same logits, or is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from dualign.checkpoints.adapters import fold
from dualign.checkpoints.lora import read_adapter
from dualign.data.config import DataConfig, SourceConfig
from dualign.data.prepare import DataRequest, prepare_pairs
from dualign.models.source import resolve_model
from dualign.models.tokenizer import load_tokenizer
from dualign.preference.train import build_trainer
from dualign.preference.train import run as run_preference
from dualign.rundir import paused_model
from dualign.sft.config import SFTStage
from dualign.sft.train import run as run_sft
from dualign.training.adapter import AdapterConfig
from tests.training.conftest import save_model
from tests.training.test_lora_across_stages import TRAIN, preference, sft

FEW = {"train": {**TRAIN, "max_steps": 2}}
IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def bases(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "tied": save_model(folder / "tied", tokenizer),
        "untied": save_model(
            folder / "untied", tokenizer, tie_word_embeddings=False, attention_bias=True
        ),
    }


def logits(base: Path, adapter: Path | None = None) -> torch.Tensor:
    """Of transformers and PEFT alone."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(IDS).logits


# The quick ones have several settings each.
QUICK: dict[str, tuple[str, dict[str, Any]]] = {
    "names and rates": (
        "tied",
        {
            "exclude_modules": ("k_proj",),
            "layers_to_transform": (1,),
            "rank_pattern": {"q_proj": 2, r"layers\.1\..*up_proj": 6},
            "alpha_pattern": {"v_proj": 64, "up_proj": 3},
            "init_lora_weights": "gaussian",
            "loraplus_lr_ratio": 4.0,
        },
    ),
    "pissa": (
        "tied",
        {"init_lora_weights": "pissa", "rank_pattern": {"q_proj": 2}, "use_rslora": True},
    ),
    "tied embedding": ("tied", {"modules_to_save": ("embed_tokens", "lm_head")}),
    "head and biases": ("untied", {"modules_to_save": ("lm_head", "model.norm"), "bias": "all"}),
}
SLOW: dict[str, tuple[str, dict[str, Any]]] = {
    "excluded expression": ("tied", {"exclude_modules": r".*\.layers\.0\..*"}),
    "layers of names": ("tied", {"layers_to_transform": (0,), "target_modules": ("q_proj",)}),
    "orthogonal": ("tied", {"init_lora_weights": "orthogonal"}),
    "pissa by iteration": ("tied", {"init_lora_weights": "pissa_niter_4"}),
    "olora": ("tied", {"init_lora_weights": "olora", "lora_dropout": 0.1}),
    "embedding alone": ("tied", {"modules_to_save": ("embed_tokens",)}),
    "embedding and head": ("untied", {"modules_to_save": ("embed_tokens", "lm_head")}),
    "biases of the layers": ("untied", {"bias": "lora_only", "target_modules": ("q_proj",)}),
    "dora": ("untied", {"use_dora": True, "rank_pattern": {"q_proj": 2}, "bias": "all"}),
}


@pytest.mark.parametrize(
    ("base", "settings"),
    [pytest.param(*QUICK[name], id=name) for name in QUICK]
    + [pytest.param(*SLOW[name], id=name, marks=pytest.mark.slow) for name in SLOW],
)
def test_the_adapter_by_plain_peft_and_folded_is_the_trained_model(
    bases: dict[str, Path], rows: Path, tmp_path: Path, base: str, settings: dict[str, Any]
) -> None:
    """The stage itself compares the saved adapter with the live model (`verify_reload`)."""
    adapter = sft(bases[base], rows, tmp_path / "sft", lora=AdapterConfig(r=4, **settings), **FEW)
    by_peft = logits(bases[base], adapter)
    fold(bases[base], adapter, tmp_path / "folded")
    torch.testing.assert_close(logits(tmp_path / "folded"), by_peft, rtol=0, atol=1e-4)
    assert (by_peft - logits(bases[base])).abs().max() > 1e-2, "it has learned"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["init_lora_weights"] in (True, "gaussian", "orthogonal")
    head = "model.embed_tokens.weight" if base == "tied" else "lm_head.weight"
    if "modules_to_save" in settings:
        trained = read_adapter(adapter).replaced
        whole = AutoModelForCausalLM.from_pretrained(bases[base]).state_dict()
        assert not torch.equal(trained[head], whole[head]), "the head under the loss was trained"


def test_the_base_stays_the_reference_of_pissa_and_of_modules_to_save(
    bases: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    """PEFT writes the rest of a weight into the base, and trains a copy of the head beside the old one."""
    settings = [
        {"init_lora_weights": "pissa"},
        {"modules_to_save": ("lm_head",), "init_lora_weights": "orthogonal"},
    ]
    for number, keys in enumerate(settings):
        stage = preference(bases["untied"], rows, lora=AdapterConfig(r=2, **keys), **FEW)
        start = resolve_model(stage.model)
        tokenizer, template = load_tokenizer(start, stage.template, stage.template_kwargs)
        data = prepare_pairs(DataRequest(stage.data, tokenizer, template, seed=1))
        trainer = build_trainer(stage, start, data, tokenizer, tmp_path / str(number), seed=1)
        batch = trainer.data_collator([data.train[i] for i in range(4)])
        before = trainer.compute_ref_log_probs(trainer.model, batch)
        start_loss = trainer.compute_loss(trainer.model.eval(), batch).item()
        trainer.train()
        torch.testing.assert_close(trainer.compute_ref_log_probs(trainer.model, batch), before)
        assert start_loss == pytest.approx(1.0, abs=1e-4), "apo_zero of equal models"
        assert abs(trainer.compute_loss(trainer.model.eval(), batch).item() - 1.0) > 1e-3
        live = trainer.model.get_base_model().state_dict()
        plain = {
            re.sub(r"\.(base_layer|original_module)\.", ".", name): live[name] for name in live
        }
        for name, tensor in AutoModelForCausalLM.from_pretrained(start.base).state_dict().items():
            assert torch.equal(plain[name], tensor), name


def test_apo_on_ranks_of_its_own_is_the_sum_of_both(
    bases: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    ranks = AdapterConfig(r=4, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 5})
    parent = sft(bases["tied"], rows, tmp_path / "sft", lora=ranks, **FEW)
    own = AdapterConfig(
        r=2, rank_pattern={"k_proj": 3}, layers_to_transform=(0,), init_lora_weights="olora"
    )
    apo = tmp_path / "apo"
    run_preference(preference(parent, rows, lora=own, **FEW), apo, seed=1)
    fold(bases["tied"], apo, tmp_path / "folded")
    by_peft = logits(bases["tied"], apo)
    torch.testing.assert_close(logits(tmp_path / "folded"), by_peft, rtol=0, atol=1e-4)
    assert (by_peft - logits(bases["tied"], parent)).abs().max() > 1e-3
    modules = read_adapter(apo).modules
    layers = "model.layers.{}.self_attn.{}"
    assert modules[layers.format(0, "q_proj")].rank == 2 + 2 * 2, (
        "olora's start is taken away again"
    )
    assert modules[layers.format(0, "k_proj")].rank == 4 + 2 * 3
    assert modules[layers.format(1, "q_proj")].rank == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "pissa_niter_2", "lora_dropout": 0.2, "loraplus_lr_ratio": 8.0},
        pytest.param(
            {"modules_to_save": ("embed_tokens",), "bias": "all", "lora_dropout": 0.2},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["start and rates", "whole tensors"],
)
def test_a_resumed_run_ends_with_the_same_bits(
    bases: dict[str, Path], rows: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    base = bases["untied" if "bias" in settings else "tied"]
    data = DataConfig(sources=(SourceConfig(path=str(rows / "train.jsonl")),), max_tokens=128)
    train = {**TRAIN, "max_steps": 3, "lr_scheduler_type": "cosine"}
    keys: dict[str, Any] = {"lora": AdapterConfig(r=4, **settings), "train": train}
    stage = SFTStage(name="sft", model=str(base), data=data, **keys)
    run_sft(stage, tmp_path / "calm", seed=1)
    run_sft(replace(stage, pause_at_step=1), tmp_path / "rough", seed=1)
    run_sft(stage, tmp_path / "rough", seed=1)
    weights = [tmp_path / name / "adapter_model.safetensors" for name in ("calm", "rough")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_lora_plus_trains_b_at_its_own_rate(
    bases: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    """By hand: after one step of SGD without momentum B has moved `ratio` times as far, A as far."""
    moved = []
    for ratio in (None, 3.0):
        train = {"max_steps": 2, "learning_rate": 0.1, "optim": "sgd", "weight_decay": 0.0}
        train |= {"per_device_train_batch_size": 2, "max_grad_norm": 0, "logging_steps": 1}
        train |= {"lr_scheduler_type": "linear", "gradient_checkpointing": False}
        data = DataConfig(sources=(SourceConfig(path=str(rows / "train.jsonl")),), max_tokens=128)
        lora = AdapterConfig(r=4, loraplus_lr_ratio=ratio)
        stage = SFTStage(name="sft", model=str(bases["tied"]), data=data, lora=lora, train=train)
        stage = replace(stage, pause_at_step=1)
        run_sft(stage, tmp_path / str(ratio), seed=1)
        model = paused_model(tmp_path / str(ratio), 1)
        moved.append(load_file(model / "adapter_model.safetensors"))
    for name, tensor in moved[0].items():
        expected = 3 * tensor if "lora_B" in name else tensor
        torch.testing.assert_close(moved[1][name], expected, rtol=1e-4, atol=1e-8)
