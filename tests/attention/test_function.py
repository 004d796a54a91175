"""Documents and branches of a flat batch give the logits that they give alone."""

from itertools import chain

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
    SmolLM3Config,
)

from dualign.attention.function import ATTENTION
from dualign.attention.segments import branch_segments, document_segments

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = [
    LlamaConfig(**SHAPE),
    SmolLM3Config(**SHAPE, no_rope_layer_interval=2),
    Qwen3Config(**SHAPE),
    Gemma3TextConfig(
        **SHAPE, sliding_window=4, layer_types=["sliding_attention", "full_attention"] * 2
    ),
]
BOUND = 1e-5  # of the largest logit


def tiny_model(config: PreTrainedConfig, attention: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def alone(config: PreTrainedConfig, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return tiny_model(config, "eager")(input_ids=torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_documents_of_a_batch_have_the_logits_that_they_have_alone(
    config: PreTrainedConfig,
) -> None:
    documents = [list(range(5, 5 + length)) for length in (9, 1, 14)]
    segments = document_segments([len(ids) for ids in documents])
    with torch.no_grad():
        logits = tiny_model(config, ATTENTION)(
            input_ids=torch.tensor([list(chain.from_iterable(documents))]),
            position_ids=segments.positions[None],
            segments=segments,
        ).logits[0]
    expected = torch.cat([alone(config, ids) for ids in documents])
    assert (logits - expected).abs().max() <= BOUND * expected.abs().max()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_branches_see_their_prefix_and_themselves(config: PreTrainedConfig) -> None:
    prefixes = [list(range(5, 13)), [7, 8], []]
    branches = [[[20, 21, 22], [30]], [[40, 41], [50, 51, 52, 53, 54, 55]], [[60], [61, 62]]]
    flat: list[int] = []
    expected = []
    for prefix, ends in zip(prefixes, branches, strict=True):
        flat += [*prefix, *chain.from_iterable(ends)]
        if prefix:
            expected.append(alone(config, prefix))
        expected += [alone(config, prefix + end)[len(prefix) :] for end in ends]
    segments = branch_segments(
        [len(prefix) for prefix in prefixes], [[len(end) for end in ends] for ends in branches]
    )
    with torch.no_grad():
        logits = tiny_model(config, ATTENTION)(
            input_ids=torch.tensor([flat]),
            position_ids=segments.positions[None],
            segments=segments,
        ).logits[0]
    wanted = torch.cat(expected)
    assert (logits - wanted).abs().max() <= BOUND * wanted.abs().max()
