"""Models whose layers keep the documents of a batch apart by segments, and those that don't."""

import pytest
from transformers import (
    BloomConfig,
    DistilBertConfig,
    GPT2Config,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    NemotronConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3NextConfig,
)

from dualign.attention.support import default_attention, unsupported
from tests.attention.test_function import CONFIGS, SHAPE


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_models_that_keep_documents_apart_are_supported(config: PreTrainedConfig) -> None:
    assert unsupported(config) is None


def test_a_class_without_sdpa_has_eager() -> None:
    assert (
        default_attention(BloomConfig(vocab_size=96, hidden_size=32, n_layer=1, n_head=2))
        == "eager"
    )
    assert (
        default_attention(MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=1))
        == "eager"
    )
    for other in (GPT2Config(n_embd=32, n_layer=1, n_head=4), DistilBertConfig()):
        assert default_attention(other) == "sdpa"


def test_windows_of_some_layers_are_seen() -> None:
    windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    assert unsupported(Qwen2Config(**SHAPE, **windows)) is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (LlamaConfig(**SHAPE, attention_dropout=0.1), "dropout"),
        (GPT2Config(n_embd=32, n_layer=2, n_head=4), "dropout"),
        (Llama4TextConfig(**SHAPE, intermediate_size_mlp=64, num_local_experts=2), "chunked"),
        (NemotronConfig(**SHAPE), "0 of its 4 layers"),
        (MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2), "0 of its 2 layers"),
        (Qwen3NextConfig(**SHAPE), "its code refuses the trial"),
        (DistilBertConfig(), "its code refuses the trial"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_models_that_dont_are_told_why(config: PreTrainedConfig, reason: str) -> None:
    assert reason in str(unsupported(config))


def test_a_config_that_changes_is_tried_again() -> None:
    config = LlamaConfig(**SHAPE)
    assert unsupported(config) is None
    config.attention_dropout = 0.1
    assert "dropout" in str(unsupported(config))
