"""QLoRA on the CPU: SFT and then APO over a frozen NF4 base."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dualign.data.config import DataConfig, SourceConfig
from dualign.preference.config import PreferenceStage
from dualign.preference.train import run as run_preference
from dualign.sft.config import SFTStage
from dualign.sft.train import run as run_sft
from dualign.training.adapter import AdapterConfig

pytest.importorskip("bitsandbytes")


def road(model: Path, rows: Path, folder: Path, *, steps: int, rate: float) -> list[list[dict]]:
    """SFT, then APO on its adapter; the logs of both."""
    train = {
        "max_steps": steps,
        "learning_rate": rate,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_checkpointing": False,
    }
    common = {"lora": AdapterConfig(r=8), "quantization": "nf4", "train": train}
    sft, apo = folder / "sft", folder / "apo"
    sft.mkdir(), apo.mkdir()
    data = DataConfig(sources=(SourceConfig(path=str(rows / "train.jsonl")),), max_tokens=128)
    first = run_sft(SFTStage(name="sft", model=str(model), data=data, **common), sft, seed=1)
    pairs = DataConfig(
        sources=(SourceConfig(path=str(rows / "pairs.jsonl")),), max_tokens=128, packing="none"
    )
    second = run_preference(
        PreferenceStage(name="apo", model=str(sft), data=pairs, **common), apo, seed=1
    )
    for outcome in (first, second):
        # bitsandbytes' CPU kernel rounds to 16 bits inside, which two adapters and their sum meet in another order.
        assert outcome.checks["reload_rms_share"] <= 0.02
    assert first.checks["reload_max_logit_difference"] <= 1e-5 * first.checks["largest_logit"]
    assert json.loads((apo / "adapter_config.json").read_text())["r"] == 16
    return [
        [json.loads(line) for line in (item / "log.jsonl").read_text().splitlines()]
        for item in (sft, apo)
    ]


def test_a_tiny_model_learns_over_nf4_and_apo_starts_at_one(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    sft, apo = road(tiny, rows, tmp_path, steps=8, rate=2e-2)
    losses = [entry["loss"] for entry in sft if "loss" in entry]
    assert losses[-1] < losses[0]
    assert apo[0]["loss"] == pytest.approx(1.0, abs=1e-3)


def test_the_adapter_over_nf4_is_trained_in_float32(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """In bfloat16, as TRL has it, most of A would stay where it is at this rate."""
    data = DataConfig(sources=(SourceConfig(path=str(rows / "train.jsonl")),), max_tokens=128)
    train = {"max_steps": 2, "learning_rate": 1e-6, "gradient_checkpointing": False}
    train |= {"per_device_train_batch_size": 1, "lr_scheduler_type": "constant"}
    adapters = []
    for steps in (1, 3):
        stage = SFTStage(
            name="sft",
            model=str(tiny),
            data=data,
            lora=AdapterConfig(r=8),
            quantization="nf4",
            train={**train, "max_steps": steps},
        )
        folder = tmp_path / str(steps)
        folder.mkdir()
        run_sft(stage, folder, seed=1)
        adapters.append(load_file(folder / "adapter_model.safetensors"))
    before, after = adapters
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    moved = [(before[name] != after[name]).float().mean() for name in after if "lora_A" in name]
    assert torch.stack(moved).mean() > 0.9


def test_an_evaluation_leaves_the_gradients_over_nf4_as_they_are(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    """On CPUs with AVX512-BF16, bitsandbytes reorders weights in evaluation mode, not for backward."""
    held_out = str(rows / "pairs.jsonl")
    sources = (
        SourceConfig(path=held_out),
        SourceConfig(path=held_out, validation=True, label="held out"),
    )
    data = DataConfig(sources=sources, max_tokens=128, packing="none")
    train = {"max_steps": 3, "learning_rate": 1e-2, "logging_steps": 1, "eval_steps": 1}
    train |= {"per_device_train_batch_size": 2, "gradient_checkpointing": False}
    norms = []
    for strategy in ("no", "steps"):
        stage = PreferenceStage(
            name="apo",
            model=str(tiny),
            data=data,
            lora=AdapterConfig(r=4),
            quantization="nf4",
            train={**train, "eval_strategy": strategy},
        )
        folder = tmp_path / strategy
        folder.mkdir()
        run_preference(stage, folder, seed=1)
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        norms.append([entry["grad_norm"] for entry in log if "grad_norm" in entry])
    assert len(norms[0]) == 3 and norms[0] == norms[1]


@pytest.mark.slow
def test_the_real_model_learns_over_nf4_and_apo_starts_at_one(
    embedded: Path, rows: Path, tmp_path: Path
) -> None:
    sft, apo = road(embedded, rows, tmp_path, steps=4, rate=1e-3)
    losses = [entry["loss"] for entry in sft if "loss" in entry]
    assert losses[-1] < losses[0]
    assert apo[0]["loss"] == pytest.approx(1.0, abs=1e-3)
