"""A longer context: what a merge writes computes what transformers computes with such settings."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config, SmolLM3Config

from dualign import engine
from dualign.checkpoints.context import (
    ContextConfig,
    positions_of,
    rotary_settings,
    stretched_config,
)
from dualign.errors import DualignError
from dualign.merging.config import MergeInput, MergeStage
from dualign.merging.merge import run
from dualign.recipe import load_recipe

SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32,
    "rope_theta": 5000.0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {"llama": LlamaConfig, "smollm3": SmolLM3Config, "qwen3": Qwen3Config}
FACTORS = [1.0 + 0.25 * i for i in range(4)]
# What the recipe says -> what a user of transformers writes as rope_scaling, and the positions.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "linear": ({"rope": "linear"}, {"rope_type": "linear", "factor": 4.0}, 32),
    "dynamic": ({"rope": "dynamic"}, {"rope_type": "dynamic", "factor": 4.0}, 32),
    "yarn": (
        {"rope": "yarn", "settings": {"beta_fast": 16, "attention_factor": 1.25}},
        {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
            "beta_fast": 16, "attention_factor": 1.25,
        },
        128,
    ),
    "longrope": (
        {"rope": "longrope", "settings": {"short_factor": [1.0] * 4, "long_factor": FACTORS}},
        {
            "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 32,
            "short_factor": [1.0] * 4, "long_factor": FACTORS,
        },
        128,
    ),
    "llama3": (
        {"rope": "llama3"},
        {
            "rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 32,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        },
        128,
    ),
}  # fmt: skip


def saved(folder: Path, family: str, **settings: Any) -> Path:
    torch.manual_seed(0)
    config = CONFIGS[family](**{**SHAPE, **settings})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def stretched(model: Path, out: Path, **context: Any) -> Path:
    stage = MergeStage(
        name="long",
        models=(MergeInput(model=str(model)),),
        context=ContextConfig(**{"length": 128, **context}),
    )
    out.mkdir()
    run(stage, out, seed=0)
    return out


@torch.no_grad()
def logits(folder: Path, length: int = 100, **config: Any) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **config).eval()
    tokens = torch.randint(0, 64, (1, length), generator=torch.Generator().manual_seed(1))
    return model(tokens).logits


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers_with_these_settings(
    kind: str, family: str, tmp_path: Path
):
    context, rope, positions = KINDS[kind]
    start = saved(tmp_path / "start", family)
    long = stretched(start, tmp_path / "long", **context)
    torch.manual_seed(0)
    settings = {**SHAPE, "max_position_embeddings": positions, "rope_scaling": rope}
    expected = AutoModelForCausalLM.from_config(CONFIGS[family](**settings)).eval()
    tokens = torch.randint(0, 64, (1, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(logits(long), expected(tokens).logits)
    assert not torch.allclose(logits(long), logits(start), atol=1e-4)
    weights = [load_file(folder / "model.safetensors") for folder in (start, long)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_another_base_alone(tmp_path: Path):
    start = saved(tmp_path / "start", "llama")
    long = stretched(start, tmp_path / "long", rope="default", rope_theta=5e6)
    config = json.loads((long / "config.json").read_text())
    assert config["max_position_embeddings"] == 128
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 5e6}
    record = json.loads((long / "merge.json").read_text())
    assert record["merge"]["context"]["rope_theta"] == 5e6


def test_a_model_that_was_stretched_is_stretched_from_its_original_length(tmp_path: Path):
    start = saved(tmp_path / "start", "llama")
    first = stretched(start, tmp_path / "first", length=64)
    second = stretched(first, tmp_path / "second", length=128)
    at_once = stretched(start, tmp_path / "at-once", length=128)
    assert json.loads((second / "config.json").read_text()) == json.loads(
        (at_once / "config.json").read_text()
    )


def test_of_layers_that_slide_the_others_are_stretched():
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = {
        "max_position_embeddings": 32,
        "rope_parameters": {
            "sliding_attention": rope,
            "full_attention": {**rope, "rope_theta": 1e6},
        },
    }
    result = stretched_config(config, ContextConfig(length=64, rope="linear"))
    assert result["rope_parameters"]["sliding_attention"] == rope
    assert result["rope_parameters"]["full_attention"] == {
        "rope_type": "linear",
        "rope_theta": 1e6,
        "factor": 2.0,
    }


def test_settings_of_older_files_are_read():
    """Whether 64 is the length before or after linear scaling, no file says: both kinds of model exist."""
    old = {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert rotary_settings(old) == {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    old["max_position_embeddings"] = 64
    with pytest.raises(DualignError, match=r"64 positions are those before or after isn't known"):
        stretched_config(old, ContextConfig(length=128))
    result = stretched_config(old, ContextConfig(length=128, original=32))
    assert result["rope_parameters"]["original_max_position_embeddings"] == 32
    assert "rope_scaling" not in result


def test_a_config_without_a_base_has_that_of_its_family():
    """The first Llamas' config.json names no rope_theta."""
    config = {"model_type": "llama", "max_position_embeddings": 2048}
    result = stretched_config(config, ContextConfig(length=4096))
    assert result["rope_parameters"]["rope_theta"] == 10000.0
    assert result["rope_parameters"]["original_max_position_embeddings"] == 2048


@pytest.mark.parametrize("kind", KINDS)
def test_readers_of_a_stretched_config_agree_on_its_length(kind: str):
    """vLLM multiplies max_position_embeddings by the factor of linear and dynamic, and not of the others."""
    config = {"model_type": "llama", **SHAPE}
    context = ContextConfig(length=128, **KINDS[kind][0])
    assert positions_of(config) == 32
    assert positions_of(stretched_config(config, context)) == 128


def test_gemma_3_counts_the_positions_after_stretching():
    rope = {"rope_type": "default", "rope_theta": 1e4}
    layers = {"sliding_attention": rope, "full_attention": rope}
    config = {"model_type": "gemma3_text", "max_position_embeddings": 32, "rope_parameters": layers}
    result = stretched_config(config, ContextConfig(length=128, rope="linear"))
    assert result["max_position_embeddings"] == positions_of(result) == 128


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ({"length": 32}, "expected more than 32"),
        ({"factor": 2.0}, "times a factor of 2 are 64"),
        ({"original": 64}, "original is 64, and the model has 32 positions"),
        ({"settings": {"attention_factor": "big"}}, "expected a number above 0, found 'big'"),
        (
            {"settings": {"beta_fast": 1, "beta_slow": 2}},
            r"expected more than beta_slow \(2\), found 1",
        ),
        ({"settings": {"truncate": 1}}, "expected true or false, found 1"),
        ({"rope": "llama3", "settings": {"high_freq_factor": 0.5}}, "more than low_freq_factor"),
        (
            {"rope": "longrope", "settings": {"short_factor": [1.0], "long_factor": [1.0] * 4}},
            "found 1 numbers, and the model has 4 rotary frequencies",
        ),
        (
            {
                "rope": "longrope",
                "factor": 8.0,
                "settings": {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
            },
            r"by length / original \(4\) in vLLM",
        ),
        ({"rope": "default", "rope_theta": 5e6, "length": -1}, "expected more than 0, found -1"),
        ({"rope": "default"}, "by rope_theta alone"),
        ({"rope": "linear", "settings": {"beta_fast": 2}}, "linear doesn't read it"),
        ({"rope": "longrope"}, "longrope needs a list of numbers"),
    ],
)
def test_what_can_not_be_is_refused(context: dict[str, Any], words: str, tmp_path: Path):
    model = saved(tmp_path / "start", "llama")
    recipe = {
        "name": "long",
        "kind": "merge",
        "models": [{"model": str(model)}],
        "context": {"length": 128, **context},
    }
    (tmp_path / "long.yaml").write_text(json.dumps({"output_dir": "runs", **recipe}))
    with pytest.raises(DualignError, match=words):
        stage = load_recipe(tmp_path / "long.yaml", ()).stages[0].config
        run(stage, tmp_path / "out", seed=0)


def test_a_context_that_can_not_be_is_said_before_anything_starts(tmp_path: Path):
    model = saved(tmp_path / "start", "llama")
    long = {"name": "long", "kind": "merge", "models": [{"model": str(model)}]}
    recipe = {"output_dir": str(tmp_path / "runs"), "stages": [long | {"context": {"length": 16}}]}
    (tmp_path / "long.yaml").write_text(json.dumps(recipe))
    with pytest.raises(DualignError, match=r"nothing was started\n.* context: 32 positions times"):
        engine.run(load_recipe(tmp_path / "long.yaml", ()))


def test_the_tokenizer_takes_texts_of_the_new_length(make_model: Any, tmp_path: Path):
    model = make_model("short", seed=1)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 32}))
    long = stretched(model, tmp_path / "long")
    assert json.loads((long / "tokenizer_config.json").read_text())["model_max_length"] == 128


def test_a_model_without_rotary_positions_is_refused():
    config = {"model_type": "gpt2", "n_positions": 1024}
    with pytest.raises(DualignError, match="no rotary positions"):
        stretched_config(config, ContextConfig(length=2048))
