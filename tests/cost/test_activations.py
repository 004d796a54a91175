"""The activation formula equals, to the byte, what autograd keeps per layer in real transformers models."""

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from dualign.cost.activations import activations
from dualign.cost.lora_shape import LoraShape
from dualign.cost.model_shape import ModelShape
from dualign.cost.training_shape import TrainingShape
from dualign.training.tiled_mlp import tile_mlps

ROWS, TOKENS = 2, 32
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "vocab_size": 128,
    "tie_word_embeddings": True,
}
LORA = LoraShape(r=8)
CASES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "autocast": {"dtype": "bfloat16", "master_weights": True},
    "eager": {"attention": "eager"},
    "eager bfloat16": {"attention": "eager", "dtype": "bfloat16"},
    "checkpointed": {"gradient_checkpointing": True},
    "lora": {"lora": LORA},
    "lora on two modules": {"lora": LoraShape(r=8, modules=("q_proj", "v_proj"))},
    "lora bfloat16": {"lora": LORA, "dtype": "bfloat16"},
    "lora autocast": {"lora": LORA, "dtype": "bfloat16", "master_weights": True},
    "lora with dropout": {"lora": LoraShape(r=8, dropout=0.1)},
    "lora checkpointed": {"lora": LORA, "gradient_checkpointing": True},
}


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
RESIDUAL = {"float32": 4, "autocast": 4, "lora bfloat16": 2, "lora checkpointed": 4}


class Kept:
    """A saved tensor, alive as long as the graph."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def build(kind: str, layers: int, training: TrainingShape) -> torch.nn.Module:
    config = AutoConfig.for_model(kind, **SIZES, num_hidden_layers=layers, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=training.attention)
    model = model if training.autocast else model.to(getattr(torch, training.dtype))
    add_fused_lm_head(model)
    if training.tiled_mlp:
        tile_mlps(model)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if training.lora:
        names = training.lora.modules
        targets = names if isinstance(names, str) else list(names)
        model = get_peft_model(
            model, LoraConfig(r=8, target_modules=targets, lora_dropout=training.lora.dropout)
        )
        model.enable_input_require_grads()
    return model.train()


def kept_bytes(model: torch.nn.Module, training: TrainingShape) -> int:
    """Bytes of the distinct storages that the graph of one loss keeps, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: weakref.WeakSet[Kept] = weakref.WeakSet()

    def pack(tensor: torch.Tensor) -> Kept:
        entry = Kept(tensor)
        kept.add(entry)
        return entry

    rows, tokens = training.micro_batch, training.max_tokens
    ids_BT = torch.randint(3, 128, (rows, tokens))
    positions_BT = torch.arange(tokens // 2 if training.masked else tokens).repeat(
        rows, 2 if training.masked else 1
    )
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda entry: entry.tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=training.autocast),
    ):
        result = model(
            input_ids=ids_BT, position_ids=positions_BT, labels=ids_BT, fused_lm_head=True
        )
    gc.collect()
    storages = [entry.tensor.untyped_storage() for entry in kept]
    del result
    return sum(
        {
            found.data_ptr(): found.nbytes()
            for found in storages
            if found.data_ptr() not in weights
        }.values()
    )


def weight_copies(shape: ModelShape, training: TrainingShape) -> int:
    """Autocast's 2-byte copies are kept beside the activations; the estimate counts them as weights."""
    adapter = training.lora.parameters(shape) if training.lora else 0
    return 2 * (shape.layers * shape.layer_linear_parameters + adapter) if training.autocast else 0


@pytest.mark.parametrize(
    ("kind", "masked"),
    [("llama", True), ("llama", False), ("qwen3", True)],
    ids=["llama packed", "llama", "qwen3 packed"],
)
@pytest.mark.parametrize("case", CASES)
def test_a_layer_keeps_what_the_formula_says(case: str, kind: str, masked: bool) -> None:
    given = {"gradient_checkpointing": False, **CASES[case]}
    training = TrainingShape(micro_batch=ROWS, max_tokens=TOKENS, masked=masked, **given)
    single, three = (kept_bytes(build(kind, layers, training), training) for layers in (1, 3))
    shape = ModelShape.from_config({"model_type": kind, **SIZES, "num_hidden_layers": 1})
    sizes = activations(shape, training)
    layer = (
        sizes.layer_input
        if training.gradient_checkpointing
        else sizes.layer + weight_copies(shape, training)
    )
    assert (three - single) / 2 == layer


@pytest.mark.parametrize("case", ["float32", "autocast", "lora bfloat16", "lora checkpointed"])
def test_an_mlp_in_tiles_keeps_its_input(case: str) -> None:
    """Two rows of 1,056 tokens: a tile of 2,048, and one of 64."""
    settings = {"gradient_checkpointing": False, **CASES[case]}
    training = TrainingShape(
        micro_batch=2, max_tokens=1056, masked=False, tiled_mlp=True, **settings
    )
    single, two = (kept_bytes(build("llama", layers, training), training) for layers in (1, 2))
    shape = ModelShape.from_config({"model_type": "llama", **SIZES, "num_hidden_layers": 1})
    sizes = activations(shape, training)
    # Autocast's copies of an MLP's weights are no longer kept, as it is computed again.
    attention = sum(a * b for name, (a, b) in shape.linears().items() if name in ATTENTION)
    layer = sizes.layer + 2 * attention * training.autocast
    assert two - single == (sizes.layer_input if training.gradient_checkpointing else layer)
    whole = activations(shape, replace(training, tiled_mlp=False))
    assert sizes.tile * 2112 == (whole.layer - sizes.layer + 2112 * 64 * RESIDUAL[case]) * 2048


@pytest.mark.parametrize(("kind", "bound"), [("gemma3_text", 0.005), ("phi3", 0.06)])
def test_layers_of_other_families_are_close(
    kind: str, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.SIZES", SIZES | {"head_dim": 16})  # phi3 has no other
    training = TrainingShape(
        micro_batch=ROWS, max_tokens=TOKENS, lora=LORA, gradient_checkpointing=False
    )
    single, three = (kept_bytes(build(kind, layers, training), training) for layers in (1, 3))
    shape = ModelShape.from_config({"model_type": kind, **SIZES, "num_hidden_layers": 1})
    assert (three - single) / 2 == pytest.approx(activations(shape, training).layer, rel=bound)


def test_the_ends_of_the_model_are_close() -> None:
    training = TrainingShape(micro_batch=ROWS, max_tokens=TOKENS, gradient_checkpointing=False)
    shape = ModelShape.from_config({"model_type": "llama", **SIZES, "num_hidden_layers": 1})
    kept = kept_bytes(build("llama", 1, training), training)
    assert activations(shape, training).saved(shape, training) == pytest.approx(kept, rel=0.02)


def test_dora_keeps_both_outputs_of_a_module() -> None:
    plain, dora = (
        activations(
            ModelShape.from_config({"model_type": "llama", **SIZES, "num_hidden_layers": 1}),
            TrainingShape(
                micro_batch=1,
                max_tokens=1,
                gradient_checkpointing=False,
                lora=LoraShape(r=8, dora=dora),
            ),
        )
        for dora in (False, True)
    )
    # q 96, k and v 48, o 64, gate and up 160, down 64: twice, in float32
    assert dora.layer - plain.layer == 2 * 640 * 4
