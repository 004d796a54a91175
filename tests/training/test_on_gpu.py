"""What differs on a card: types, autocast, scaling of the loss, placement, peaks. `pytest -m gpu`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from dualign import engine
from dualign.models.device import this_device
from dualign.models.loading import load_model
from dualign.recipe import load_recipe
from tests.test_gpu_benchmark import require_same_losses, require_sound

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LORA = {"lora": {"r": 4}}
NF4 = {**LORA, "quantization": "nf4"}


def trained(folder: Path, model: Path, rows: Path, **keys: Any) -> list[dict[str, Any]]:
    """Run SFT and APO on its result; return both records with their logs."""
    train = {"max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-3}
    train |= {"logging_steps": 1, "save_strategy": "no", "disable_tqdm": True}
    train |= keys.pop("train", {})
    files = {"sft": rows / "train.jsonl", "apo": rows / "pairs.jsonl"}
    data = {
        name: {"sources": [{"path": str(file)}], "max_tokens": 128} for name, file in files.items()
    }
    sft = {"name": "sft", "kind": "sft", "model": str(model), "data": data["sft"], "train": train}
    apo = {"name": "apo", "kind": "preference", "model": "stage:sft", "train": train}
    apo["data"] = {**data["apo"], "packing": "none"}
    path = folder / "recipe.yaml"
    stages = [{**stage, **keys} for stage in (sft, apo)]
    path.write_text(json.dumps({"output_dir": str(folder / "out"), "stages": stages}))
    records = []
    for out in engine.run(load_recipe(path, []), say=lambda _: None):
        record = json.loads((out / "run.json").read_text())
        lines = (out / "log.jsonl").read_text().splitlines()
        record["losses"] = [
            entry["loss"] for line in lines if "loss" in (entry := json.loads(line))
        ]
        records.append(record)
    return records


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (LORA, ("bfloat16", "bfloat16")),
        ({**LORA, "save": "merged"}, ("bfloat16", "bfloat16")),
        (NF4, ("bfloat16", "bfloat16")),
        ({}, ("float32", "bfloat16")),
        ({"dtype": "float32"}, ("float32", "float32")),
        ({"dtype": "float32", **LORA}, ("float32", "float32")),
        ({"train": {"fp16": True}}, ("float32", "float16")),
        ({**LORA, "train": {"fp16": True}}, ("float32", "float16")),
        ({**NF4, "train": {"fp16": True}}, ("float32", "float16")),
        ({"train": {"tf32": True, "bf16": False}}, ("float32", "float32")),
        ({**LORA, "train": {"gradient_checkpointing": False}}, ("bfloat16", "bfloat16")),
        ({**LORA, "train": {"use_cpu": True}}, ("float32", "float32")),
        ({**NF4, "train": {"use_cpu": True}}, ("float32", "float32")),
    ],
    ids=str,
)
def test_both_stages_train_and_what_they_saved_is_the_live_model(
    tiny: Path, rows: Path, tmp_path: Path, keys: dict[str, Any], expected: tuple[str, str]
) -> None:
    """The comparison of what was saved is part of the run (`verify_reload`)."""
    if keys.get("quantization"):
        pytest.importorskip("bitsandbytes")
    if not this_device().bfloat16:
        pytest.skip("the expected types are those of Ampere and later")
    sft, apo = trained(tmp_path, tiny, rows, **keys)
    for record in (sft, apo):
        assert (record["metrics"]["dtype"], record["metrics"]["arithmetic"]) == expected
        assert "reload_rms_share" in record["checks"]
        if not keys.get("train", {}).get("use_cpu"):
            assert record["metrics"]["peak_gpu_mb"] > 0
    assert sft["losses"][-1] < sft["losses"][0]
    assert apo["losses"][0] == pytest.approx(1.0, abs=2e-2)
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"  # it ended with its stage


def test_a_saved_adapter_answers_on_the_card(tiny: Path, rows: Path, tmp_path: Path) -> None:
    trained(tmp_path, tiny, rows, **LORA)
    model = load_model(str(tmp_path / "out" / "apo"))
    assert model.device.type == "cuda"
    ids = torch.ones(1, 4, dtype=torch.long, device=model.device)
    assert model(input_ids=ids).logits.isfinite().all()


@pytest.mark.parametrize("part", list(gpu.PARTS))
def test_back_ends_isolate_and_both_sides_agree(part: str, tmp_path: Path) -> None:
    require_sound(gpu.run_part(part, gpu.Setting(folder=tmp_path, tiny=True)))


def test_long_rows_train_alike_in_tiles_and_offloaded(tmp_path: Path) -> None:
    """TRL's offloading needs a card."""
    setting = gpu.Setting(folder=tmp_path, tiny=True)
    figures = [figure for part in gpu.LONG for figure in gpu.run_part(part, setting)]
    require_sound(figures)
    require_same_losses(figures)
