"""Settings of a model as llama.cpp needs them; refuses those that llama.cpp would ignore.

llama.cpp hardcodes what transformers reads from config.json: the activation, the SmolLM3 layers
without positions, the bounds of YaRN. Other values are refused here, because llama.cpp would run a
different model without a warning.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dualign.checkpoints.context import positions_of
from dualign.errors import CheckpointError

# transformers' name -> (llama.cpp's name, rows of q and k are interleaved, modules with a bias)
_ARCHITECTURES: dict[str, tuple[str, bool, frozenset[str]]] = {
    "LlamaForCausalLM": (
        "llama",
        True,
        frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ),
    "SmolLM3ForCausalLM": ("smollm3", True, frozenset()),
    "Qwen2ForCausalLM": ("qwen2", False, frozenset({"q_proj", "k_proj", "v_proj"})),
    "Qwen3ForCausalLM": ("qwen3", False, frozenset()),
}
SUPPORTED = tuple(_ARCHITECTURES)
_NOPE_STEP = 4  # llama.cpp: layers 3, 7, 11, ... of smollm3 have no positions
_ROPE_KEYS = {
    "default": set[str](),
    "linear": {"factor"},
    "yarn": {"factor", "original_max_position_embeddings"},
    "llama3": {
        "factor",
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
    },
}
# llama.cpp 0.3 ignores these YaRN settings for these architectures and uses the values below.
_YARN_FIXED = {"beta_fast": 32, "beta_slow": 1, "truncate": True}


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """Shape and settings of a model as llama.cpp needs them."""

    name: str
    """llama.cpp's name: llama, smollm3, qwen2 or qwen3"""
    interleaved: bool
    """q and k are stored with the two halves of each head interleaved"""
    biased: frozenset[str]
    """modules that may have a bias"""
    blocks: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    vocab_size: int
    epsilon: float
    rope: Mapping[str, Any]
    """rope_type, rope_theta and the settings of the type"""


def architecture_of(config: Mapping[str, Any], place: str) -> Architecture:
    """Return the architecture of a config.json, filled up with transformers' defaults.

    Raises:
        CheckpointError: llama.cpp can't run this model as transformers does.
    """
    from transformers import CONFIG_MAPPING

    model_class = (config.get("architectures") or ["none"])[0]
    if model_class not in _ARCHITECTURES:
        raise CheckpointError(
            f"{place}: architecture {model_class}: dualign writes {', '.join(SUPPORTED)}; for others, "
            "set LLAMA_CPP_DIR to a checkout of llama.cpp, whose converter is then used"
        )
    full = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    name, interleaved, biased = _ARCHITECTURES[model_class]
    differences = [*_differences(full, name), *_rope_differences(full.rope_parameters, name)]
    if differences:
        raise CheckpointError(
            f"{place}: llama.cpp would run another model: {'; '.join(differences)}"
        )
    return Architecture(
        name=name,
        interleaved=interleaved,
        biased=biased,
        blocks=full.num_hidden_layers,
        hidden=full.hidden_size,
        intermediate=full.intermediate_size,
        heads=full.num_attention_heads,
        kv_heads=full.num_key_value_heads,
        head_dim=getattr(full, "head_dim", None) or full.hidden_size // full.num_attention_heads,
        context=positions_of(full.to_dict()) or full.max_position_embeddings,
        vocab_size=full.vocab_size,
        epsilon=full.rms_norm_eps,
        rope=dict(full.rope_parameters),
    )


def _differences(config: Any, name: str) -> list[str]:
    """List the settings that llama.cpp ignores and that aren't what it uses."""
    differences = []
    if config.hidden_act != "silu":
        differences.append(f"hidden_act is {config.hidden_act!r}, it uses silu")
    layers = getattr(config, "layer_types", None) or []
    if getattr(config, "use_sliding_window", False) or "sliding_attention" in layers:
        differences.append("layers with a sliding window, it lets each see all")
    if name == "smollm3":
        differences += _nope_differences(list(config.no_rope_layers))
    return differences


def _nope_differences(has_positions: list[int]) -> list[str]:
    without = [i for i, flag in enumerate(has_positions) if not flag]
    expected = list(range(_NOPE_STEP - 1, len(has_positions), _NOPE_STEP))
    if without == expected:
        return []
    return [
        f"no_rope_layers: layers {without or 'none'} have no positions, "
        f"it takes each {_NOPE_STEP}th ({expected or 'none'})"
    ]


def _rope_differences(rope: Mapping[str, Any], name: str) -> list[str]:
    kind = rope.get("rope_type", "default")
    if kind not in _ROPE_KEYS or (kind == "llama3" and name != "llama"):
        return [f"rope_type {kind!r}, it knows {', '.join(_ROPE_KEYS)} for {name}"]
    missing = [key for key in _ROPE_KEYS[kind] if not rope.get(key)]
    differences = [f"rope_parameters: {key} is missing" for key in missing]
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        differences.append(f"partial_rotary_factor {rope['partial_rotary_factor']}, it rotates all")
    if kind == "yarn" and not differences:
        differences += _yarn_differences(rope)
    return differences


def _yarn_differences(rope: Mapping[str, Any]) -> list[str]:
    """llama.cpp scales attention by 0.1 ln(factor) + 1 (YaRN, eq. 22), with betas 32 and 1."""
    differences = [
        f"YaRN's {key} is {rope[key]}, it takes {fixed}"
        for key, fixed in _YARN_FIXED.items()
        if rope.get(key) is not None and rope[key] != fixed
    ]
    natural = 0.1 * math.log(rope["factor"]) + 1
    factor = rope.get("attention_factor")
    if factor is not None and not math.isclose(factor, natural, rel_tol=1e-5):
        differences.append(f"YaRN's attention_factor is {factor}, it takes {natural:.6f}")
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        differences.append("YaRN's mscale and mscale_all_dim, which it doesn't read")
    return differences
