"""The count of what an adapter trains is that of PEFT's model."""

from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from dualign.cost.model_shape import ModelShape
from dualign.cost.stage_shape import _lora_shape
from dualign.errors import ConfigError
from dualign.training.adapter import AdapterConfig
from dualign.training.adapter_layers import peft_config

ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "excluded names": {"exclude_modules": ("q_proj", "layers.0.mlp.up_proj")},
    "excluded expression": {"exclude_modules": r".*\.1\..*", "use_dora": True},
    "layers": {"layers_to_transform": (0,), "target_modules": ("q_proj", "up_proj")},
    "ranks": {"rank_pattern": {r"layers\.1\..*q_proj": 7, "down_proj": 2}},
    "embedding": {"modules_to_save": ("embed_tokens", "lm_head")},
    "norms": {"modules_to_save": ("norm",)},
    "whole layers": {"modules_to_save": ("layers.1.mlp", "model.norm")},
    "biases": {"bias": "all"},
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("settings", ADAPTERS.values(), ids=ADAPTERS)
def test_the_count_is_pefts(settings: dict[str, Any], tied: bool) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "head_dim": 4}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    biases = settings.get("bias") == "all"
    config = LlamaConfig(**sizes, tie_word_embeddings=tied, attention_bias=biases, mlp_bias=biases)
    adapter = AdapterConfig(r=4, **settings)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = get_peft_model(model, peft_config(adapter, model))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shape = ModelShape.from_config(config.to_dict())
    assert _lora_shape(adapter).parameters(shape) == trained
    head = model.get_output_embeddings().weight.requires_grad
    assert _lora_shape(adapter).trains_head(shape) is head


def test_a_module_of_unknown_size_is_no_estimate() -> None:
    shape = ModelShape.from_config(LlamaConfig(tie_word_embeddings=True).to_dict())
    adapter = AdapterConfig(modules_to_save=("router",))
    with pytest.raises(ConfigError, match="modules_to_save router: the memory estimate"):
        _lora_shape(adapter).parameters(shape)
