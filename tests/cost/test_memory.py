"""The memory estimate: figures worked by hand for SmolLM3-3B, and measured peaks of small trainings through TRL."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import dualign
from dualign.cost.memory import LoraShape, ModelShape, TrainingShape, estimate
from dualign.errors import CheckpointError, ConfigError

SMOLLM3_CONFIG: dict[str, Any] = {
    "model_type": "smollm3",
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "intermediate_size": 11008,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
SMOLLM3 = ModelShape.from_config(SMOLLM3_CONFIG)
# 128256 x 2048 + 36 x (2 x 2048 x 2048 + 2 x 2048 x 512 + 3 x 2048 x 11008 + 2 x 2048) + 2048
PARAMETERS = 3_075_098_624
LINEAR = 36 * 78_118_912
# r (inputs + outputs): 16 x (4096 + 2560 + 2560 + 4096 + 3 x 13056) x 36
ADAPTER = 30_228_480
GB = 1e9

FULL = TrainingShape(micro_batch=1, max_tokens=4096, dtype="bfloat16", device="cuda")
LORA = replace(FULL, lora=LoraShape(r=16))
QLORA = replace(LORA, quantization="nf4", optimizer="paged_adamw_8bit")


def test_the_parameters_of_smollm3_are_counted_exactly() -> None:
    assert SMOLLM3.parameters == PARAMETERS
    assert LoraShape(r=16).parameters(SMOLLM3) == ADAPTER


@pytest.mark.parametrize(
    "kind", ["llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma3_text", "phi3"]
)
@pytest.mark.parametrize("tied", [True, False])
def test_the_count_of_parameters_equals_that_of_the_model(kind: str, tied: bool) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "vocab_size": 100}
    config = {
        **sizes,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": tied,
    }
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **config, pad_token_id=0)
        )
    model.tie_weights()
    written = json.loads(model.config.to_json_string(use_diff=True))
    assert ModelShape.from_config(written).parameters == model.num_parameters()


def test_full_training_of_smollm3_in_mixed_precision() -> None:
    need = estimate(SMOLLM3, replace(FULL, master_weights=True, sharding="fsdp2", world_size=1))
    assert need.weights == pytest.approx(6.15 * GB, rel=0.001)
    assert need.master_weights == pytest.approx(12.30 * GB, rel=0.001)
    assert need.optimizer == pytest.approx(24.60 * GB, rel=0.001)
    assert need.gradients == pytest.approx(12.30 * GB, rel=0.001)


def test_full_training_of_smollm3_in_pure_bfloat16_keeps_states_in_bfloat16() -> None:
    need = estimate(SMOLLM3, FULL)
    assert (need.weights, need.gradients, need.optimizer) == (
        2 * PARAMETERS,
        2 * PARAMETERS,
        4 * PARAMETERS,
    )
    assert need.master_weights == need.reference == 0


def test_autocast_holds_float32_weights_and_copies_of_the_matrices() -> None:
    need = estimate(SMOLLM3, replace(FULL, master_weights=True))
    assert need.weights == 4 * PARAMETERS + 2 * LINEAR
    assert (need.gradients, need.optimizer) == (4 * PARAMETERS, 8 * PARAMETERS)


def test_lora_trains_float32_adapters_over_bfloat16_weights() -> None:
    need = estimate(SMOLLM3, LORA)
    assert need.weights == 2 * PARAMETERS + 4 * ADAPTER
    assert (need.gradients, need.optimizer, need.head_gradient) == (4 * ADAPTER, 8 * ADAPTER, 0)


def test_qlora_of_smollm3_fits_24_gb() -> None:
    need = estimate(SMOLLM3, QLORA)
    # 0.5 B + 1/64 B + 4/16384 B for each quantised weight; embedding and norms stay in bfloat16, the adapter in float32.
    base = LINEAR * 0.515869140625 + (PARAMETERS - LINEAR) * 2
    assert base == pytest.approx(1.976 * GB, rel=0.001)
    assert need.weights == pytest.approx(base + 4 * ADAPTER, abs=2)
    # A byte per state and 4 bytes per 256 of them.
    assert need.optimizer == pytest.approx(2 * ADAPTER * (1 + 1 / 64), abs=2)
    assert need.total < 24 * GB


def test_eight_bit_states_leave_the_embedding_in_float32() -> None:
    need = estimate(SMOLLM3, replace(FULL, optimizer="adamw_8bit"))
    embedding = 128256 * 2048
    assert need.optimizer == pytest.approx(
        (PARAMETERS - embedding) * 2 * (1 + 1 / 64) + embedding * 8, abs=2
    )


def test_nf4_bytes_are_those_of_bitsandbytes() -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(
        torch.randn(1024, 1024), quant_type="nf4", compress_statistics=True
    )
    scales = (state.absmax, state.state2.absmax)
    assert (
        sum(part.numel() * part.element_size() for part in (packed, *scales))
        == 1024 * 1024 * 0.515869140625
    )


@pytest.mark.parametrize(
    ("sharding", "divided"),
    [
        ("zero2", {"master_weights", "optimizer"}),
        ("zero3", {"master_weights", "optimizer"}),
        ("fsdp2", {"master_weights", "optimizer", "gradients"}),
    ],
)
def test_sharding_divides_what_it_shards(sharding: Any, divided: set[str]) -> None:
    single, eight = (
        estimate(SMOLLM3, replace(FULL, master_weights=True, sharding=sharding, world_size=world))
        for world in (1, 8)
    )
    for name in divided:
        assert getattr(eight, name) == pytest.approx(getattr(single, name) / 8, abs=1)
    assert eight.activations == single.activations
    gathered = 2 * 128256 * 2048 * 2
    expected = 2 * PARAMETERS if sharding == "zero2" else 2 * PARAMETERS / 8 + gathered
    assert eight.weights == pytest.approx(expected, abs=1)


def test_zero_gradients_are_a_share_and_a_bucket() -> None:
    need = estimate(SMOLLM3, replace(FULL, master_weights=True, sharding="zero2", world_size=8))
    assert need.gradients == pytest.approx(2 * PARAMETERS / 8 + 500e6 * 2, abs=1)


def test_a_frozen_copy_costs_the_weights_and_an_adapter_switched_off_nothing() -> None:
    adapter, copy, cached = (
        estimate(SMOLLM3, replace(LORA, pairs=True, micro_batch=2, reference=reference))
        for reference in ("adapter", "copy", "cached")
    )
    assert (adapter.reference, copy.reference, cached.reference) == (0, 2 * PARAMETERS, 0)


def test_checkpointing_keeps_a_layers_input_only() -> None:
    need = estimate(SMOLLM3, FULL)
    without = estimate(SMOLLM3, replace(FULL, gradient_checkpointing=False))
    inputs = 36 * 4096 * 2048 * 2
    assert inputs < need.activations < 1.2 * inputs
    assert without.activations > 10 * need.activations
    assert without.total > need.total


def test_logits_are_bounded_by_the_heads_tile() -> None:
    short, long = (estimate(SMOLLM3, replace(FULL, max_tokens=tokens)) for tokens in (4096, 65536))
    # 2^26 elements: logits and their gradient in bfloat16, and two float32 copies
    assert short.logits == 2**26 // 128256 * 128256 * (2 * 2 + 8) + 4096 * 2048 * 4
    assert long.logits - short.logits == (65536 - 4096) * 2048 * 4


def test_activations_on_the_host_are_counted_apart() -> None:
    plain, offloaded = (
        estimate(SMOLLM3, replace(LORA, max_tokens=40000, offloaded=offloaded))
        for offloaded in (False, True)
    )
    layer_input = 40000 * 2048 * 2
    assert plain.activations - offloaded.activations == (36 - 5) * layer_input
    # 163.84 MB, of which torch pins the next power of two
    outside = plain.activations - 36 * layer_input
    assert (plain.on_host, offloaded.on_host) == (0, 36 * 2**28 + outside)
    assert plain.at("loss") - offloaded.at("loss") == (36 - 5) * layer_input
    assert any(line.startswith("on_host") and "host's" in line for line in offloaded.lines())


def test_an_mlp_in_tiles_adds_its_input_to_a_long_row() -> None:
    whole, tiled = (
        estimate(SMOLLM3, replace(LORA, max_tokens=65536, tiled_mlp=tiled))
        for tiled in (False, True)
    )
    # Gate, its activation, up, product and the adapters' parts of all tokens but those of a tile;
    # in its place the input, 2048 wide; and the gradients of gate and up.
    saved, _ = whole.workspace - tiled.workspace, tiled.formulas["workspace"]
    inside = 4 * 11008 * 2 + 3 * 16 * 4 + (2 * 2048 + 11008) * 4 - 11008 * 2
    tile = 65536 - 2048
    assert saved == tile * (inside + 2 * 11008 * 2) - 65536 * 2048 * 2
    assert whole.activations == tiled.activations
    short = replace(LORA, max_tokens=2048)
    assert estimate(SMOLLM3, replace(short, tiled_mlp=True)) == estimate(SMOLLM3, short)


def test_the_formula_shows_each_term_with_its_numbers_and_the_peak() -> None:
    lines = estimate(SMOLLM3, LORA).lines()
    assert "3,075,098,624 x 2 B (bfloat16) + 30,228,480 x 4 B (adapter)" in lines[0]
    assert lines[-1].startswith("peak") and "weights + " in lines[-1]
    assert not any(line.startswith(("reference", "saving")) for line in lines)


def test_copies_made_while_saving_can_be_the_peak() -> None:
    need = estimate(SMOLLM3, replace(QLORA, save_copies=4))
    assert need.peak == "saving"
    assert need.saving == 4 * 2 * PARAMETERS


def test_a_model_that_is_not_known_is_refused() -> None:
    with pytest.raises(
        CheckpointError, match=r"model_type 'mixtral' can't be estimated; expected one of llama"
    ):
        ModelShape.from_config({**SMOLLM3_CONFIG, "model_type": "mixtral"})
    with pytest.raises(CheckpointError, match="expected whole numbers for vocab_size"):
        ModelShape.from_config({**SMOLLM3_CONFIG, "vocab_size": None})


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        ModelShape.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="isn't JSON"):
        ModelShape.from_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM3_CONFIG), encoding="utf-8")
    assert ModelShape.from_folder(tmp_path) == SMOLLM3


def test_impossible_training_is_refused() -> None:
    with pytest.raises(ConfigError, match="nf4 weights can't be trained: add lora"):
        replace(FULL, quantization="nf4")
    with pytest.raises(ConfigError, match="expected sizes of 1 or more, found 0"):
        replace(FULL, micro_batch=0)
    with pytest.raises(ConfigError, match="reference is for preference pairs"):
        replace(FULL, reference="copy")
    with pytest.raises(ConfigError, match="optim 'galore_adamw': memory is known for sgd"):
        estimate(SMOLLM3, replace(FULL, optimizer="galore_adamw"))
    with pytest.raises(ConfigError, match="target_modules lm_head"):
        estimate(SMOLLM3, replace(FULL, lora=LoraShape(r=8, modules=("q_proj", "lm_head"))))


MEASURED = ("full SFT", "LoRA SFT, 4k tokens, tiled", "LoRA DPO")
MORE = (
    "LoRA SFT, checkpointed",
    "LoRA SFT, 16k tokens",
    "LoRA SFT, 16k tokens, tiled",
    "full SFT, accumulated",
    "full SFT, short rows, optimiser not fused",
    "full DPO with a frozen copy",
)


def measured(*cases: str) -> dict[str, dict[str, int]]:
    command = [sys.executable, str(Path(__file__).with_name("peak_memory.py")), *cases]
    from tests.cost.peak_memory import (
        ENVIRONMENT,
    )  # set before the start: it would start itself again

    environment = {
        **os.environ,
        **ENVIRONMENT,
        "PYTHONPATH": str(Path(dualign.__file__).parents[1]),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    return {entry.pop("case"): entry for entry in found}


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="peak memory is reset through /proc"
)
@pytest.mark.parametrize(
    "cases", [MEASURED, pytest.param(MORE, marks=pytest.mark.slow)], ids=["three", "three more"]
)
def test_the_estimate_is_within_15_percent_of_the_measured_peak(cases: tuple[str, ...]) -> None:
    found = measured(*cases)
    assert set(found) == set(cases)
    for case, sizes in found.items():
        assert sizes["estimated"] == pytest.approx(sizes["measured"], rel=0.15), case
