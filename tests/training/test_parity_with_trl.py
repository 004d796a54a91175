"""The losses are TRL's own: our trainers on our rows against TRL used directly on the same rows, step by step."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    PreTrainedTokenizerFast,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.prepare import DataRequest, prepare_pairs, prepare_sft
from dualign.models.source import resolve_model
from dualign.models.tokenizer import load_tokenizer
from dualign.preference.config import PreferenceStage
from dualign.preference.train import run as run_preference
from dualign.sft.config import SFTStage
from dualign.sft.train import run as run_sft
from dualign.training.adapter import AdapterConfig

COMMON = {
    "max_steps": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": False,
}


def direct(tmp_path: Path) -> dict:
    return {
        **COMMON,
        "output_dir": str(tmp_path / "direct"),
        "seed": 5,
        "data_seed": 5,
        "bf16": False,
        "report_to": "none",
    }


def logged(log: list[dict], *names: str) -> list[list[float]]:
    return [[entry[name] for name in names] for entry in log if "loss" in entry]


def read_log(work: Path) -> list[dict]:
    return [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]


def sft_stage(tiny: Path, rows: Path) -> SFTStage:
    data = DataConfig(sources=(SourceConfig(path=str(rows / "train.jsonl")),), max_tokens=128)
    return SFTStage(name="sft", model=str(tiny), data=data, train=COMMON)


def test_sft_losses_equal_trls(tiny: Path, rows: Path, tmp_path: Path) -> None:
    stage = sft_stage(tiny, rows)
    run_sft(stage, tmp_path, seed=5)
    tokenizer, template = load_tokenizer(resolve_model(stage.model), stage.template, {})
    packed = prepare_sft(DataRequest(stage.data, tokenizer, template, seed=5)).train
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny),
        args=SFTConfig(
            **direct(tmp_path),
            max_length=None,
            packing=True,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=packed.select_columns(["input_ids", "labels", "seq_lengths"]),
        processing_class=tokenizer,
    )
    trainer.train()
    names = ("loss", "grad_norm", "mean_token_accuracy")
    ours, theirs = logged(read_log(tmp_path), *names), logged(trainer.state.log_history, *names)
    assert len(ours) == 4
    assert ours == [pytest.approx(step, rel=1e-5) for step in theirs]


def test_a_dense_model_of_a_class_with_experts_trains_without_a_router(
    rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """TRL and transformers fail on the router's loss of Granite 4.0 Micro, which has no experts."""
    config = GraniteMoeHybridConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        layer_types=["attention", "attention"],
        num_local_experts=0,
        shared_intermediate_size=32,
        mamba_n_heads=8,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    GraniteMoeHybridForCausalLM(config).save_pretrained(tmp_path / "granite")
    tokenizer.save_pretrained(tmp_path / "granite")
    outcome = run_sft(sft_stage(tmp_path / "granite", rows), tmp_path, seed=5)
    assert outcome.checks["reload_max_logit_difference"] == 0
    assert all("aux_loss" not in entry for entry in read_log(tmp_path))


@pytest.mark.parametrize(
    ("loss", "reference", "options"),
    [
        ("apo_zero", "auto", {}),
        ("apo_down", "cached", {}),
        ("sigmoid", "auto", {"use_weighting": True}),
        ("ipo", "auto", {"logging_steps": 2}),
    ],
)
def test_preference_losses_equal_trls_from_text_on(
    tiny: Path,
    rows: Path,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    loss: str,
    reference: str,
    options: dict,
) -> None:
    """TRL tokenises text by itself here, so the ids and where the completion starts have to agree too."""
    data = DataConfig(
        sources=(SourceConfig(path=str(rows / "pairs.jsonl")),), max_tokens=256, packing="none"
    )
    train = {**COMMON, "loss_type": loss, "beta": 0.3, **options}
    stage = PreferenceStage(
        name="apo",
        model=str(tiny),
        data=data,
        lora=AdapterConfig(r=4),
        train=train,
        reference=reference,
    )
    outcome = run_preference(stage, tmp_path, seed=5)
    assert outcome.rows is not None and outcome.rows["kept"] == 40
    own, _ = load_tokenizer(resolve_model(stage.model), stage.template, {})
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny),
        args=DPOConfig(**direct(tmp_path) | train, max_length=None),
        train_dataset=in_our_order(stage, own),
        processing_class=own,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_alpha=32, target_modules="all-linear"
        ),
    )
    trainer.train()
    names = ["loss", "grad_norm", "rewards/margins", "rewards/chosen", "rewards/accuracies"]
    names += ["logps/chosen", "logps/rejected", "num_tokens"]
    if train["logging_steps"] == 1:  # else TRL has them as means over the steps between two logs
        names += ["entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected"]
    ours, theirs = logged(read_log(tmp_path), *names), logged(trainer.state.log_history, *names)
    assert len(ours) == 4 / train["logging_steps"]
    assert ours == [pytest.approx(step, rel=1e-5, abs=5e-6) for step in theirs]


def in_our_order(stage: PreferenceStage, tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """The pairs as text for TRL, in the order that our mixture gives them; the prompts are the template's."""
    _, template = load_tokenizer(resolve_model(stage.model), stage.template, {})
    ours = prepare_pairs(DataRequest(stage.data, tokenizer, template, seed=5)).train
    names = {"prompt": "prompt_ids", "chosen": "chosen_ids", "rejected": "rejected_ids"}
    rows = [{name: tokenizer.decode(row[ids]) for name, ids in names.items()} for row in ours]
    assert all(row["prompt"].endswith(("<think>\n", "</think>\n")) for row in rows)
    return Dataset.from_list(rows)


@pytest.mark.parametrize("loss", ["apo_zero", "apo_down"])
@pytest.mark.parametrize("lora", [AdapterConfig(r=4), None], ids=["lora", "full"])
def test_an_apo_loss_is_one_before_the_first_step(
    tiny: Path, rows: Path, tmp_path: Path, loss: str, lora: AdapterConfig | None
) -> None:
    data = DataConfig(
        sources=(SourceConfig(path=str(rows / "pairs.jsonl")),), max_tokens=256, packing="none"
    )
    train = {**COMMON, "loss_type": loss, "max_steps": 1}
    stage = PreferenceStage(name="apo", model=str(tiny), data=data, lora=lora, train=train)
    run_preference(stage, tmp_path, seed=5)
    assert read_log(tmp_path)[0]["loss"] == pytest.approx(1.0, abs=1e-6)
