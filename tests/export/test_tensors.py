"""Tensors: rows in llama.cpp's order, nothing missing, nothing without a place."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from dualign.checkpoints.weights import open_weights
from dualign.errors import CheckpointError
from dualign.export.architecture import architecture_of
from dualign.export.tensors import interleave, llama3_factors, tensors_of

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_the_halves_of_each_head_are_interleave() -> None:
    rows = np.arange(8)  # two heads of four: (0 1 | 2 3) and (4 5 | 6 7)
    assert interleave(rows, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert interleave(rows[:, None] * [1, 10], 2)[1].tolist() == [2, 20]


def test_llama_3s_factors_give_transformers_frequencies() -> None:
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters=LLAMA3)
    wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    found = architecture_of({**config.to_dict(), "architectures": ["LlamaForCausalLM"]}, "m")
    plain = 500000.0 ** -(np.arange(0, 64, 2) / 64)
    assert np.allclose(plain / llama3_factors(found), wanted.numpy(), rtol=1e-5)


def test_a_missing_tensor_and_one_without_a_place_are_refused(
    tiny_llama: Path, tmp_path: Path
) -> None:
    stored = load_file(tiny_llama / "model.safetensors")
    config = json.loads((tiny_llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))

    def refused(tensors: dict[str, np.ndarray], said: str) -> None:
        save_file(tensors, tmp_path / "model.safetensors")
        weights = open_weights(tmp_path)
        with pytest.raises(CheckpointError, match=said):
            tensors_of(weights, architecture_of(weights.config, "m"))

    lost = "model.layers.2.mlp.up_proj.weight"
    refused(
        {k: v for k, v in stored.items() if k != lost},
        f"{lost} is missing .1 missing tensors in all",
    )
    extra = {"model.layers.0.self_attn.sinks": np.zeros(4, np.float32)}
    refused(stored | extra, "self_attn.sinks: llama.cpp's llama has no such tensor")


def test_an_embedding_of_another_size_than_the_config_says_is_refused(tiny_llama: Path) -> None:
    weights = open_weights(tiny_llama)
    wrong = {**weights.config, "vocab_size": 1025}
    with pytest.raises(CheckpointError, match=r"\(1024, 64\), config.json says \(1025, 64\)"):
        tensors_of(weights, architecture_of(wrong, "m"))
