"""Documents and branches of a flat batch give the logits and gradients that they give alone, under eager attention."""

import copy
from itertools import chain

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    GraniteMoeHybridConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
    SmolLM3Config,
)

from dualign.attention.function import ATTENTION
from dualign.attention.segments import Segments, branch_segments, document_segments
from dualign.errors import CheckpointError

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
    Gemma2Config(**SHAPE, sliding_window=4, attn_logit_softcapping=0.5, query_pre_attn_scalar=8),
    GptOssConfig(**SHAPE, sliding_window=4, num_local_experts=3, num_experts_per_tok=2),
    # Granite 4.0 Micro: a class for hybrids, with attention alone.
    GraniteMoeHybridConfig(
        **SHAPE,
        layer_types=["attention"] * 4,
        num_local_experts=0,
        shared_intermediate_size=64,
        position_embedding_type="rope",
        mamba_n_heads=8,
    ),
]
BOUND = 1e-5  # of the largest logit

DOCUMENTS = [list(range(5, 5 + length)) for length in (9, 1, 14)]
# (prefix, branches): the last two are a document, and branches of nothing.
BRANCHED = [
    (list(range(5, 13)), [[20, 21, 22], [30]]),
    ([7, 8], [[40, 41], [50, 51, 52, 53, 54, 55]]),
    (list(range(60, 72)), []),
    ([], [[60], [61, 62]]),
]


def tiny_model(config: PreTrainedConfig, attention: str) -> torch.nn.Module:
    """A model whose attention differs visibly from one token to the next, as in trained ones."""
    torch.manual_seed(0)
    config = copy.deepcopy(config)  # it holds the attention of the model
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sinks" in name:
                parameter.normal_()
            elif parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return model


def flat_batch(kind: str) -> tuple[list[int], Segments, list[tuple[list[int], int]]]:
    """Ids, segments, and what each run of the batch is alone: its ids, how many of them come before it."""
    if kind == "documents":
        alone = [(ids, 0) for ids in DOCUMENTS]
        return list(chain(*DOCUMENTS)), document_segments([len(ids) for ids in DOCUMENTS]), alone
    flat: list[int] = []
    alone = []
    for prefix, branches in BRANCHED:
        flat += [*prefix, *chain(*branches)]
        alone += [(prefix, 0)] if prefix else []
        alone += [(prefix + branch, len(prefix)) for branch in branches]
    segments = branch_segments(
        [len(prefix) for prefix, _ in BRANCHED],
        [[len(branch) for branch in branches] for _, branches in BRANCHED],
    )
    return flat, segments, alone


def gradient(model: torch.nn.Module, logits: list[torch.Tensor]) -> torch.Tensor:
    """Of a sum of squares of log-probabilities, over all parameters."""
    model.zero_grad()
    torch.stack([part.log_softmax(-1).square().sum() for part in logits]).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", ["documents", "branches"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_a_flat_batch_gives_the_logits_and_gradients_of_its_documents_alone(
    config: PreTrainedConfig, kind: str
) -> None:
    flat, segments, alone = flat_batch(kind)
    model, reference = tiny_model(config, ATTENTION), tiny_model(config, "eager")
    logits = model(
        input_ids=torch.tensor([flat]), position_ids=segments.positions[None], segments=segments
    ).logits[0]
    singles = [reference(input_ids=torch.tensor([ids])).logits[0, before:] for ids, before in alone]
    expected = torch.cat(singles)
    assert (logits - expected).abs().max() <= BOUND * expected.abs().max()
    ours, theirs = gradient(model, [logits]), gradient(reference, singles)
    assert torch.cosine_similarity(ours, theirs, dim=0) >= 0.99999
    assert (ours.norm() / theirs.norm() - 1).abs() <= 1e-4


def call(model: torch.nn.Module, ids: torch.Tensor, **more: object) -> torch.Tensor:
    return model(input_ids=ids, **more).logits


def test_what_would_let_documents_see_each_other_is_an_error() -> None:
    model = tiny_model(CONFIGS[0], ATTENTION)
    ids, segments = torch.arange(5, 11)[None], document_segments([4, 2])
    padded = torch.tensor([[1, 1, 1, 1, 0, 0]])
    with pytest.raises(CheckpointError, match="got no segments"):
        call(model, ids)
    with pytest.raises(CheckpointError, match="padded rows"):
        call(model, ids, attention_mask=padded, segments=segments)
    with pytest.raises(CheckpointError, match=r"one flat row of 6 tokens.*found 2 rows of 3"):
        call(model, ids.view(2, 3), segments=segments)
    with pytest.raises(CheckpointError, match=r"one flat row of 6 tokens.*found 1 rows of 5"):
        call(model, ids[:, :5], segments=segments)
    whole = torch.ones_like(padded)[:, None, None].expand(1, 1, 6, 6)
    with pytest.raises(CheckpointError, match="and a mask"):
        call(model, ids, attention_mask=whole, segments=segments)


def test_dropout_in_attention_is_an_error() -> None:
    config = LlamaConfig(**SHAPE, attention_dropout=0.1)
    model = tiny_model(config, ATTENTION).train()
    with pytest.raises(CheckpointError, match=r"dropout 0\.1"):
        call(model, torch.tensor([[5, 6]]), segments=document_segments([2]))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(*, reentrant: bool) -> None:
    flat, segments, _ = flat_batch("branches")
    inputs = {"position_ids": segments.positions[None], "segments": segments}
    model = tiny_model(CONFIGS[3], ATTENTION).train()
    plain = gradient(model, [call(model, torch.tensor([flat]), **inputs)])
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    again = gradient(model, [call(model, torch.tensor([flat]), **inputs, use_cache=False)])
    assert torch.equal(plain, again)


def test_autocast_computes_in_its_type() -> None:
    flat, segments, _ = flat_batch("documents")
    model = tiny_model(CONFIGS[0], ATTENTION)
    inputs = {"position_ids": segments.positions[None], "segments": segments}
    exact = call(model, torch.tensor([flat]), **inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = call(model, torch.tensor([flat]), **inputs)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).norm() <= 0.05 * exact.norm()
