"""What llama.cpp makes of a model, and whether that is what transformers makes of it.

llama.cpp has written into its code what transformers reads from config.json: the activation, which
layers of SmolLM3 have no positions, how YaRN is bounded. A setting it wouldn't see is refused here,
so that no file is another model than the one it was made from.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dualign.errors import CheckpointError

# transformers' name -> llama.cpp's name, whether the rows of q and k are stored in pairs, and
# which modules may have a bias.
_KINDS: dict[str, tuple[str, bool, frozenset[str]]] = {
    "LlamaForCausalLM": (
        "llama",
        True,
        frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ),
    "SmolLM3ForCausalLM": ("smollm3", True, frozenset()),
    "Qwen2ForCausalLM": ("qwen2", False, frozenset({"q_proj", "k_proj", "v_proj"})),
    "Qwen3ForCausalLM": ("qwen3", False, frozenset()),
}
KNOWN = tuple(_KINDS)
NOPE_STEP = 4  # llama.cpp: layers 3, 7, 11, ... of smollm3 have no positions
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
# What these say of YaRN llama.cpp 0.3 doesn't read for these architectures; this is what it does.
_YARN_FIXED = {"beta_fast": 32, "beta_slow": 1, "truncate": True}


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """The shape and settings of a model as llama.cpp needs them."""

    name: str
    """llama.cpp's: llama, smollm3, qwen2 or qwen3"""
    paired: bool
    """q and k are stored with the two halves of a head interleaved"""
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
    """rope_type, rope_theta and what the type needs"""


def architecture_of(config: Mapping[str, Any], place: str) -> Architecture:
    """The architecture of a config.json, with transformers' defaults for what it leaves out.

    Raises:
        CheckpointError: llama.cpp can't run this model as transformers does.
    """
    from transformers import CONFIG_MAPPING

    found = (config.get("architectures") or ["none"])[0]
    if found not in _KINDS:
        raise CheckpointError(
            f"{place}: architecture {found}: dualign writes {', '.join(KNOWN)}; for another, set "
            "LLAMA_CPP_DIR to a checkout of llama.cpp, whose converter is then used"
        )
    full = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    name, paired, biased = _KINDS[found]
    faults = [*_faults(full, name), *_rope_faults(full.rope_parameters, name)]
    if faults:
        raise CheckpointError(f"{place}: llama.cpp would run another model: {'; '.join(faults)}")
    return Architecture(
        name=name,
        paired=paired,
        biased=biased,
        blocks=full.num_hidden_layers,
        hidden=full.hidden_size,
        intermediate=full.intermediate_size,
        heads=full.num_attention_heads,
        kv_heads=full.num_key_value_heads,
        head_dim=getattr(full, "head_dim", None) or full.hidden_size // full.num_attention_heads,
        context=full.max_position_embeddings,
        vocab_size=full.vocab_size,
        epsilon=full.rms_norm_eps,
        rope=dict(full.rope_parameters),
    )


def _faults(config: Any, name: str) -> list[str]:
    """What it would not see in a config."""
    found = []
    if config.hidden_act != "silu":
        found.append(f"hidden_act is {config.hidden_act!r}, it uses silu")
    layers = getattr(config, "layer_types", None) or []
    if getattr(config, "use_sliding_window", False) or "sliding_attention" in layers:
        found.append("layers with a sliding window, it lets each see all")
    if name == "smollm3":
        found += _nope_faults(list(config.no_rope_layers))
    return found


def _nope_faults(rotated: list[int]) -> list[str]:
    """transformers' 1 means that a layer has positions."""
    without = [i for i, one in enumerate(rotated) if not one]
    expected = list(range(NOPE_STEP - 1, len(rotated), NOPE_STEP))
    if without == expected:
        return []
    return [
        f"no_rope_layers: layers {without or 'none'} have no positions, "
        f"it takes each {NOPE_STEP}th ({expected or 'none'})"
    ]


def _rope_faults(rope: Mapping[str, Any], name: str) -> list[str]:
    kind = rope.get("rope_type", "default")
    if kind not in _ROPE_KEYS or (kind == "llama3" and name != "llama"):
        return [f"rope_type {kind!r}, it knows {', '.join(_ROPE_KEYS)} for {name}"]
    found = [f"rope_parameters: {key} is missing" for key in _ROPE_KEYS[kind] if not rope.get(key)]
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        found.append(f"partial_rotary_factor {rope['partial_rotary_factor']}, it rotates all")
    if kind == "yarn" and not found:
        found += _yarn_faults(rope)
    return found


def _yarn_faults(rope: Mapping[str, Any]) -> list[str]:
    """llama.cpp scales attention by 0.1 ln(factor) + 1 (YaRN, eq. 22), with betas 32 and 1."""
    wanted = {key: rope.get(key) for key in _YARN_FIXED}
    found = [
        f"YaRN's {key} is {value}, it takes {_YARN_FIXED[key]}"
        for key, value in wanted.items()
        if value is not None and value != _YARN_FIXED[key]
    ]
    natural = 0.1 * math.log(rope["factor"]) + 1
    given = rope.get("attention_factor")
    if given is not None and not math.isclose(given, natural, rel_tol=1e-5):
        found.append(f"YaRN's attention_factor is {given}, it takes {natural:.6f}")
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        found.append("YaRN's mscale and mscale_all_dim, which it doesn't read")
    return found
