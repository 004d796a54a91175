"""PiSSA and OLoRA on a base that stays as it is.

Both start an adapter as the main part of a weight, `s B0 A0`, and train it on the rest (PiSSA, arXiv 2404.02948,
equations 2 to 4; OLoRA, arXiv 2406.01775):

    W x + s (B A - B0 A0) x

PEFT writes the rest, `W - s B0 A0`, into the base. Then the saved adapter alone is wrong on the base that people
have, and the model with its adapter switched off, a preference stage's reference, isn't the start model. Here the
base stays `W`, and `-s B0 A0` is a second adapter that is never trained: the same function and the same gradients.
What is published is the sum of the two, an ordinary adapter of twice the rank.
"""

from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

FROZEN_START = "start"  # the adapter that takes the start of the trained one away again


def with_frozen_start(model: "PreTrainedModel", config: "LoraConfig") -> "PeftModel":
    """Return the model with the adapter that `init_lora_weights` says, and its start taken away again.

    Memory holds the weights of the adapted layers twice meanwhile.
    """
    from peft import get_peft_model
    from peft.tuners.lora import LoraLayer

    weights = {name: weight.detach().clone() for name, weight in _linear_weights(model).items()}
    policy = get_peft_model(model, config)
    # PEFT takes a layer's weight apart again whenever an adapter is added with such a config.
    policy.peft_config["default"].init_lora_weights = True
    policy.add_adapter(FROZEN_START, _plain(policy.peft_config["default"]))
    for name, layer in policy.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            layer.get_base_layer().weight.data = weights[name]
            layer.lora_A[FROZEN_START].weight.data = layer.lora_A["default"].weight.detach().clone()
            layer.lora_B[FROZEN_START].weight.data = -layer.lora_B["default"].weight.detach()
    return policy


def _linear_weights(model: "PreTrainedModel") -> Mapping[str, Tensor]:
    head = model.get_output_embeddings()
    return {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def _plain(config: "LoraConfig") -> "LoraConfig":
    plain = copy(config)
    plain.lora_dropout = 0.0
    return plain
