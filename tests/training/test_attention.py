"""Which attention a stage trains with, and that its result doesn't name it."""

import logging
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import LlamaConfig

from dualign.attention.segments import Segments, document_segments
from dualign.data.config import DataConfig, SourceConfig
from dualign.data.tokens.collate import PackedCollator
from dualign.errors import CheckpointError
from dualign.models.source import resolve_model
from dualign.sft.config import SFTStage
from dualign.sft.train import run
from dualign.training.attention import with_attention


def stage(model: Path, rows: Path, **more: object) -> SFTStage:
    source = SourceConfig(path=str(rows / "train.jsonl"))
    data = DataConfig(sources=(source,), max_tokens=128, validation_rows=6)
    return SFTStage(name="sft", model=str(model), data=data, **more)


def test_a_stage_trains_evaluates_and_saves_with_attention_by_document(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    train = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "gradient_checkpointing": True,
        "bf16": True,
        "dataloader_num_workers": 1,
    }
    outcome = run(stage(tiny, rows, train=train), tmp_path, seed=1)
    assert outcome.metrics["attention"] == "dualign"
    assert outcome.metrics["validation"]["eval_loss"] > 0
    assert outcome.checks["reload_rms_share"] < 0.025
    assert "dualign" not in (tmp_path / "config.json").read_text()


def test_a_model_that_cant_trains_with_sdpa_and_says_why(
    tmp_path: Path, rows: Path, caplog: pytest.LogCaptureFixture
) -> None:
    LlamaConfig(
        num_hidden_layers=2, hidden_size=16, num_attention_heads=2, attention_dropout=0.1
    ).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    settled = stage(tmp_path, rows)
    with caplog.at_level(logging.WARNING):
        settled = with_attention(settled, resolve_model(settled.model))
    assert settled.attn_implementation == "sdpa"
    assert "trains with sdpa attention: it has dropout" in caplog.text
    named = replace(settled, attn_implementation="dualign")
    with pytest.raises(CheckpointError, match="can't use attention by document: it has dropout"):
        with_attention(named, resolve_model(named.model))
    for name in ("sdpa", "eager"):
        other = replace(settled, attn_implementation=name)
        assert with_attention(other, resolve_model(other.model)) is other


def test_segments_come_through_a_data_loader_and_other_processes() -> None:
    rows = [
        {"input_ids": [1, 2, 3], "labels": [1, 2, 3], "seq_lengths": [2, 1], "doc_groups": [0, 1]}
    ] * 4
    collator = PackedCollator(by_document=True)
    loader = Accelerator(cpu=True).prepare(DataLoader(rows, batch_size=2, collate_fn=collator))
    batches = list(loader)
    assert [batch["segments"].query_lengths for batch in batches] == [(2, 1, 2, 1)] * 2
    assert batches[0]["segments"].positions.tolist() == [0, 1, 0, 0, 1, 0]
    copied: Segments = pickle.loads(pickle.dumps(document_segments([3, 2])))
    assert copied.key_bounds.tolist() == [0, 3, 5]
