"""Packed documents don't see each other: logits and gradients are those of each document alone."""

from typing import Any

import pytest
import torch
from transformers import (
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from dualign.data.tokens.collate import PackedCollator
from dualign.data.tokens.labels import IGNORE_INDEX
from dualign.errors import CheckpointError, DataError
from dualign.training.isolation import check_isolation

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "smollm3": (SmolLM3ForCausalLM, SmolLM3Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
}
LENGTHS = [[7, 1, 5], [9, 4]]


def build(family: str, attention: str) -> PreTrainedModel:
    torch.manual_seed(0)
    kind, config = FAMILIES[family]
    model = kind(config(**SHAPE, attn_implementation=attention)).eval()
    # Trained weights are larger than the initial ones: attention must differ visibly from one token to the next.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model


def packed_rows() -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(1)
    rows = []
    for which, lengths in enumerate(LENGTHS):
        ids = torch.randint(1, 97, (sum(lengths),), generator=draw).tolist()
        groups = list(range(which * 3, which * 3 + len(lengths)))
        rows.append({"input_ids": ids, "labels": ids, "seq_lengths": lengths, "doc_groups": groups})
    return rows


def documents() -> list[torch.Tensor]:
    return [
        part
        for row in packed_rows()
        for part in torch.tensor(row["input_ids"]).split(row["seq_lengths"])
    ]


def alone(model: PreTrainedModel) -> torch.Tensor:
    return torch.cat(
        [model(input_ids=document[None], use_cache=False).logits[0] for document in documents()]
    )


def test_the_batch_is_one_flat_row_without_a_mask() -> None:
    batch = PackedCollator()(packed_rows())
    assert set(batch) == {"input_ids", "labels", "position_ids", "group_ids"}
    assert {tuple(value.shape) for value in batch.values()} == {(1, 26)}
    starts = [0, 7, 8, 13, 22]
    assert batch["position_ids"][0].tolist() == [*range(7), 0, *range(5), *range(9), *range(4)]
    assert [at for at, label in enumerate(batch["labels"][0]) if label == IGNORE_INDEX] == starts
    assert batch["group_ids"][0].tolist() == [0] * 7 + [1] + [2] * 5 + [3] * 9 + [4] * 4


def test_lengths_that_disagree_with_the_tokens_are_refused() -> None:
    rows = packed_rows()
    rows[0]["seq_lengths"] = [7, 1, 4]
    with pytest.raises(DataError, match="rows of 26 tokens say that their documents have 25"):
        PackedCollator()(rows)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "attention", ["sdpa", "eager", pytest.param("flex_attention", marks=pytest.mark.slow)]
)
def test_packed_documents_give_the_logits_of_each_alone(family: str, attention: str) -> None:
    model = build(family, attention)
    batch = PackedCollator()(packed_rows())
    with torch.no_grad():
        # flex compiles anew for each length, so its documents are looked at alone under eager.
        expected = alone(build(family, "eager") if attention == "flex_attention" else model)
        packed = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits[0]
    assert (packed - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_of_ones_lets_documents_see_each_other(family: str) -> None:
    """The trap that the collator's missing mask avoids; if this fails, transformers has mended it."""
    model = build(family, "sdpa")
    batch = PackedCollator()(packed_rows())
    with torch.no_grad():
        expected = alone(model)
        leaking = model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            attention_mask=torch.ones_like(batch["input_ids"]),
            use_cache=False,
        ).logits[0]
    first = LENGTHS[0][0]
    assert (leaking - expected)[:first].abs().max() < 1e-4 * expected.abs().max()
    assert (leaking - expected)[first:].abs().max() > 0.01 * expected.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_packed_batch_are_those_of_its_documents(family: str) -> None:
    model = build(family, "sdpa")
    batch = PackedCollator()(packed_rows())
    del batch["group_ids"]
    supervised = int((batch["labels"] != IGNORE_INDEX).sum())

    def gradient(losses: list[torch.Tensor]) -> torch.Tensor:
        model.zero_grad()
        torch.stack(losses).sum().backward()
        return torch.cat(
            [
                parameter.grad.flatten()
                for parameter in model.parameters()
                if parameter.grad is not None
            ]
        )

    count = {"num_items_in_batch": torch.tensor(supervised), "use_cache": False}
    packed = gradient([model(**batch, **count).loss])
    singles = [document[None] for document in documents() if len(document) > 1]
    separate = gradient([model(input_ids=ids, labels=ids, **count).loss for ids in singles])
    assert torch.cosine_similarity(packed, separate, dim=0) > 0.99999
    assert (packed.norm() / separate.norm() - 1).abs() < 1e-4


def test_layers_that_carry_a_state_along_the_row_are_refused() -> None:
    kinds = ["full_attention", "sliding_attention"] * 2
    check_isolation(Qwen3Config(**SHAPE, layer_types=kinds), "a", tokens=64)
    hybrid = Qwen3NextConfig(**SHAPE, layer_types=["linear_attention", "full_attention"] * 2)
    with pytest.raises(
        CheckpointError, match=r"b: has linear_attention layers.*data\.packing: none"
    ):
        check_isolation(hybrid, "b", tokens=64)


def test_chunks_that_are_counted_along_the_batch_are_refused_where_they_would_cut() -> None:
    config = Llama4TextConfig(**SHAPE, attention_chunk_size=32)
    check_isolation(config, "a", tokens=32)
    with pytest.raises(CheckpointError, match=r"chunks of 32 tokens.*up to 64"):
        check_isolation(config, "a", tokens=64)
