"""MLPs in tiles: the same outputs and gradients, and nothing as wide as an MLP is kept."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from dualign.data.config import DataConfig, SourceConfig
from dualign.errors import CheckpointError
from dualign.models.source import resolve_model
from dualign.sft.config import SFTStage
from dualign.training.config import TILE_TOKENS
from dualign.training.low_rank import LowRankLinear
from dualign.training.policy import load_policy
from dualign.training.precision import resolved
from dualign.training.tiled_mlp import tile_mlps, tiles_in_words

ROWS, TOKENS = 3, TILE_TOKENS  # three tiles and none of them a row
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DATA = DataConfig(sources=(SourceConfig(path="rows.jsonl"),))


def build(kind: str, *, tiled: bool, lora: str | None = None, checkpointed: bool = False) -> Any:
    """In float64; in float32 with LoRA as on a CPU, which computes in no other type."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES))
    model = model if lora == "of a CPU" else model.double()
    if tiled:
        assert tile_mlps(model) == []
    if lora is not None:
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        if lora == "of a CPU":
            config._register_custom_module({torch.nn.Linear: LowRankLinear})
        model = get_peft_model(model, config)
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def outcome(model: Any) -> dict[str, Tensor]:
    """The last hidden states, and the gradient of what is trained."""
    torch.manual_seed(1)
    ids = torch.randint(32, (ROWS, TOKENS)).view(
        -1, 32
    )  # short rows: attention isn't what is tried
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    output = inner.model(input_ids=ids, use_cache=False).last_hidden_state
    (output * torch.randn(output.shape)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach(), **gradients}


@pytest.mark.parametrize(
    ("kind", "lora", "checkpointed", "bound"),
    [
        ("llama", None, False, 1e-13),
        ("olmo2", None, True, 1e-13),  # a norm comes after its MLP
        ("phi3", "PEFT's", True, 1e-13),
        ("smollm3", "of a CPU", True, 1e-5),
    ],
)
def test_outputs_and_gradients_are_those_of_whole_mlps(
    kind: str, lora: str | None, checkpointed: bool, bound: float
) -> None:
    whole, tiled = (
        outcome(build(kind, tiled=tiled, lora=lora, checkpointed=checkpointed))
        for tiled in (False, True)
    )
    assert whole.keys() == tiled.keys() and len(whole) > 10
    for name, tensor in whole.items():
        assert (tiled[name] - tensor).norm() < bound * tensor.norm(), name


def test_what_layers_keep_may_wait_in_the_hosts_memory() -> None:
    """By torch's hooks for that, around checkpointed layers with tiles in them."""
    model = build("llama", tiled=True, checkpointed=True)
    here = outcome(model)
    model.zero_grad()
    with torch.autograd.graph.save_on_cpu():
        moved = outcome(model)
    assert here.keys() == moved.keys()
    assert all(torch.equal(here[name], moved[name]) for name in here)


def test_a_stages_model_keeps_its_names_and_its_files(tiny: Path, tmp_path: Path) -> None:
    folders = []
    for tiled in (False, True):
        stage = SFTStage(
            name="sft", model=str(tiny), data=DATA, attn_implementation="sdpa", tiled_mlp=tiled
        )
        model, _ = load_policy(resolved(stage), resolve_model(str(tiny)), seed=0)
        assert ("forward" in vars(model.model.layers[0].mlp)) == tiled
        folders.append(tmp_path / str(tiled))
        model.save_pretrained(folders[-1])
    whole, saved = ({file.name: file.read_bytes() for file in f.iterdir()} for f in folders)
    assert whole == saved


MOE = SIZES | {"num_experts": 4, "moe_intermediate_size": 16, "n_routed_experts": 4}


def test_experts_are_left_alone_by_name() -> None:
    some = AutoConfig.for_model("deepseek_v3", **MOE, first_k_dense_replace=1, n_group=1)
    words = r"in tiles of 2,048 tokens; tiled_mlp leaves DeepseekV3MoE alone"
    assert re.search(words, tiles_in_words(some))
    none = AutoConfig.for_model("qwen3_moe", **MOE)
    with pytest.raises(CheckpointError, match=r"Qwen3MoeForCausalLM has no MLP.*SparseMoeBlock"):
        tiles_in_words(none)
