"""The modules of a model from config.json alone, without memory for its weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dualign.errors import CheckpointError


def build_meta_model(config: Mapping[str, Any]) -> nn.Module:
    """Build the causal language model of a config.json on the meta device: shapes and types only.

    Raises:
        CheckpointError: transformers doesn't know this kind of model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in config.items() if key != "model_type"}
    try:
        model_config = AutoConfig.for_model(config["model_type"], **fields)
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(model_config)
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"config.json: model_type {config.get('model_type')!r} isn't a causal language model that transformers "
            f"knows ({type(error).__name__})"
        ) from None
    return model


def linear_modules(model: nn.Module) -> list[str]:
    """Return the paths of the linear layers, in the model's order."""
    return [path for path, module in model.named_modules() if type(module) is nn.Linear]


def quantized_modules(model: nn.Module) -> list[str]:
    """Return the paths of the linear layers that transformers quantizes: all but the head."""
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    excluded = get_keys_to_not_convert(model)
    return [path for path in linear_modules(model) if should_convert_module(path, excluded)]
