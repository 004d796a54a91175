"""Models that can't use attention by document: what `auto` is for them, and that nothing leaks or changes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Llama4TextConfig,
    Mamba2Config,
    MambaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RwkvConfig,
)
from trl import SFTConfig, SFTTrainer

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.prepare import DataRequest, prepare_sft
from dualign.errors import CheckpointError
from dualign.models.source import resolve_model
from dualign.models.tokenizer import load_tokenizer
from dualign.sft.config import SFTStage
from dualign.sft.train import run
from dualign.training.adapter import AdapterConfig
from dualign.training.start_model import start_issues

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.2}
TRAIN = {
    "max_steps": 3,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "per_device_train_batch_size": 1,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "disable_tqdm": True,
}


def config(kind: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    common = {**SIZES, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    common["eos_token_id"] = tokenizer.eos_token_id
    if kind == "mamba":
        return MambaConfig(**common, state_size=4)
    if kind == "mamba2":
        return Mamba2Config(
            **common, state_size=8, num_heads=4, head_dim=16, n_groups=1, chunk_size=16
        )
    if kind == "bloom":
        return BloomConfig(**common, n_head=2)
    if kind == "rwkv":
        return RwkvConfig(**common, attention_hidden_size=32)
    return Llama4TextConfig(
        **common,
        intermediate_size=48,
        intermediate_size_mlp=48,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_local_experts=2,
        attention_chunk_size=512,
    )


@pytest.fixture
def stage(
    request: pytest.FixtureRequest, tmp_path: Path, rows: Path, tokenizer: PreTrainedTokenizerFast
) -> SFTStage:
    """SFT of a tiny model of the kind of `request.param`; a row is a batch, its documents not packed."""
    folder = tmp_path / "model"
    AutoModelForCausalLM.from_config(config(request.param, tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    source = SourceConfig(path=str(rows / "train.jsonl"))
    data = DataConfig(sources=(source,), max_tokens=128, packing="none")
    return SFTStage(name="sft", model=str(folder), data=data, train=TRAIN)


@pytest.mark.parametrize(
    ("stage", "words"),
    [("mamba", "has linear_attention layers"), ("bloom", "change by .* with the document before")],
    indirect=["stage"],
)
def test_packed_documents_that_would_leak_are_refused(
    stage: SFTStage, words: str, tmp_path: Path
) -> None:
    packed = replace(stage, data=replace(stage.data, packing="best_fit"))
    with pytest.raises(CheckpointError, match=words):
        run(packed, tmp_path / "work", seed=5)


@pytest.mark.parametrize("stage", ["bloom"], indirect=True)
@pytest.mark.parametrize(
    ("train", "held_out"),
    [({"per_device_train_batch_size": 2}, 0), ({"eval_strategy": "steps", "eval_steps": 2}, 4)],
    ids=["training", "evaluation"],
)
def test_rows_of_one_batch_that_would_leak_are_refused(
    stage: SFTStage, train: dict[str, Any], held_out: int, tmp_path: Path
) -> None:
    several = replace(
        stage, data=replace(stage.data, validation_rows=held_out), train={**TRAIN, **train}
    )
    with pytest.raises(CheckpointError, match="with the document before it"):
        run(several, tmp_path / "work", seed=5)


@pytest.mark.parametrize("stage", ["mamba", "mamba2", "bloom"], indirect=True)
def test_a_row_in_a_batch_trains_as_trls(stage: SFTStage, tmp_path: Path) -> None:
    outcome = run(stage, tmp_path / "work", seed=5)
    assert outcome.metrics["attention"] == "eager"
    own, template = load_tokenizer(resolve_model(stage.model), stage.template, {})
    rows = prepare_sft(DataRequest(stage.data, own, template, seed=5)).train
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(stage.model),
        args=SFTConfig(
            **TRAIN,
            output_dir=str(tmp_path / "direct"),
            seed=5,
            data_seed=5,
            bf16=False,
            report_to="none",
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=rows.select_columns(["input_ids", "labels"]),
        processing_class=own,
    )
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert outcome.metrics["first_loss"] == pytest.approx(theirs[0], rel=1e-5)
    assert outcome.metrics["last_loss"] == pytest.approx(theirs[-1], rel=1e-4)


@pytest.mark.parametrize("stage", ["llama4"], indirect=True)
def test_llama_4_trains_packed_rows_and_adapters_beside_its_routers(
    stage: SFTStage, tmp_path: Path
) -> None:
    data = replace(stage.data, packing="best_fit")
    for lora in (None, AdapterConfig(r=4)):
        outcome = run(
            replace(stage, data=data, lora=lora), tmp_path / f"lora-{lora is not None}", seed=5
        )
        assert outcome.metrics["attention"] == "sdpa"
        assert outcome.metrics["last_loss"] < outcome.metrics["first_loss"]


@pytest.mark.parametrize("stage", ["rwkv"], indirect=True)
def test_rwkv_is_refused_before_and_while_it_is_loaded(stage: SFTStage, tmp_path: Path) -> None:
    assert "halves its weights in place" in start_issues(stage)[0][1]
    with pytest.raises(CheckpointError, match="halves its weights in place"):
        run(stage, tmp_path / "work", seed=5)
