"""What llama.cpp would run as another model is refused, by name."""

from typing import Any

import pytest

from dualign.errors import CheckpointError
from dualign.export.architecture import architecture_of

SMOLLM3: dict[str, Any] = {
    "architectures": ["SmolLM3ForCausalLM"],
    "model_type": "smollm3",
    "num_hidden_layers": 8,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "no_rope_layers": [1, 1, 1, 0, 1, 1, 1, 0],
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
    "max_position_embeddings": 65536,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 5e6,
    "factor": 2.0,
    "original_max_position_embeddings": 65536,
}


def test_smollm3s_settings_are_read() -> None:
    found = architecture_of({**SMOLLM3, "rope_parameters": YARN}, "m")
    assert (found.name, found.blocks, found.head_dim, found.kv_heads) == ("smollm3", 8, 16, 2)
    assert dict(found.rope) == YARN


def test_the_old_form_of_yarn_is_read() -> None:
    old = {key: value for key, value in SMOLLM3.items() if key != "rope_parameters"}
    scaling = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 65536}
    found = architecture_of({**old, "rope_theta": 5e6, "rope_scaling": scaling}, "m")
    assert {key: found.rope[key] for key in YARN} == YARN


def test_what_a_config_leaves_out_is_as_transformers_has_it() -> None:
    bare = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64}
    found = architecture_of({**bare, "num_attention_heads": 4}, "m")
    assert (found.kv_heads, found.head_dim, found.rope["rope_theta"]) == (4, 16, 10000.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"no_rope_layers": [1] * 8}, r"layers none have no positions, it takes each 4th \(\[3, 7\]\)"),
        ({"no_rope_layers": [1, 1, 0] * 2 + [1, 0]}, r"layers \[2, 5, 7\] have no positions"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', it uses silu"),
        ({"use_sliding_window": True, "sliding_window": 128}, "a sliding window"),
        ({"rope_parameters": {**YARN, "attention_factor": 1.0}}, r"attention_factor is 1.0, it takes 1.0693"),
        ({"rope_parameters": {**YARN, "beta_fast": 16}}, "beta_fast is 16, it takes 32"),
        ({"rope_parameters": {**YARN, "truncate": False}}, "truncate is False"),
        ({"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}}, "mscale"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 5e6, "factor": 2.0, "original_max_position_embeddings": 65536, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}}, "rope_type 'longrope'"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 5e6, "factor": 2.0}}, "rope_type 'dynamic'"),
    ],
)  # fmt: skip
def test_a_setting_that_llama_cpp_does_not_read_is_refused(
    change: dict[str, Any], said: str
) -> None:
    with pytest.raises(CheckpointError, match=f"m: llama.cpp would run another model: .*{said}"):
        architecture_of({**SMOLLM3, **change}, "m")


def test_an_attention_factor_that_yarn_has_anyway_is_let_through() -> None:
    given = {**YARN, "attention_factor": 1.0693147180559945, "beta_fast": 32.0}
    assert architecture_of({**SMOLLM3, "rope_parameters": given}, "m").name == "smollm3"


def test_another_architecture_is_named_with_what_to_do() -> None:
    with pytest.raises(CheckpointError, match=r"GemmaForCausalLM: dualign writes .*LLAMA_CPP_DIR"):
        architecture_of({"architectures": ["GemmaForCausalLM"], "model_type": "gemma"}, "m")
