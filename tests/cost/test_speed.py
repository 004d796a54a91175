"""Operations and seconds of a training."""

from dataclasses import replace

import pytest

from dualign.cost.lora_shape import LoraShape
from dualign.cost.model_shape import ModelShape
from dualign.cost.speed import (
    cpu_throughput,
    device_throughput,
    estimate_seconds,
    peak_flops,
    training_flops,
)
from dualign.cost.training_shape import TrainingShape

SHAPE = ModelShape.from_config(
    {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "vocab_size": 32000,
    }
)
FULL = TrainingShape(micro_batch=1, max_tokens=1, gradient_checkpointing=False)
# What multiplies: everything but the input embedding and the norms.
MATRICES = SHAPE.parameters - 32000 * 2048 - (2 * 24 + 1) * 2048


def per_token(training: TrainingShape) -> float:
    return training_flops(SHAPE, training, 1000) / 1000 / MATRICES


def test_a_parameter_costs_six_operations_per_token_and_eight_with_checkpointing() -> None:
    assert per_token(FULL) == pytest.approx(6, rel=0.02)
    assert per_token(replace(FULL, gradient_checkpointing=True)) == pytest.approx(8, rel=0.02)


def test_lora_saves_the_gradient_of_the_frozen_weights() -> None:
    lora = replace(FULL, lora=LoraShape(r=16))
    assert per_token(lora) == pytest.approx(4, rel=0.06)
    assert per_token(replace(lora, gradient_checkpointing=True)) == pytest.approx(6, rel=0.06)


def test_a_reference_costs_a_forward_pass_unless_it_is_cached() -> None:
    given = {"pairs": True, "micro_batch": 2, "lora": LoraShape(r=16)}
    adapter, cached = (
        per_token(replace(FULL, **given, reference=reference))
        for reference in ("adapter", "cached")
    )
    assert adapter - cached == pytest.approx(2, rel=0.02)


def test_long_rows_cost_more_per_token() -> None:
    # 3 passes x 24 layers x 2 x 2048 x tokens, over the parameters that multiply
    added = per_token(replace(FULL, max_tokens=4097)) - per_token(FULL)
    assert added == pytest.approx(3 * 24 * 2 * 2048 * 4096 / MATRICES)


def test_a_device_is_known_by_its_name() -> None:
    # 1 / (1 / 0.869 + 0.0035 x 312e12 / 2039e9) of 312e12
    assert device_throughput("NVIDIA A100-SXM4-80GB") == pytest.approx(0.593 * 312e12, rel=0.001)
    assert peak_flops("NVIDIA GeForce RTX 4090") == pytest.approx(165.2e12)
    assert device_throughput("something else") is None
    assert peak_flops("something else") is None


def test_seconds_are_unknown_when_the_device_is() -> None:
    assert estimate_seconds(10**15, 1e12, devices=4) == 250
    assert estimate_seconds(10**15, None) is None


def test_a_cpu_is_measured() -> None:
    assert 1e6 < cpu_throughput(width=256) < 1e15
