"""Both layouts of a batch of pairs give what each answer after its prompt gives alone."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from dualign.attention.function import ATTENTION
from dualign.models.head import add_label_scores
from dualign.models.pairs import (
    MODEL_INPUTS,
    Layout,
    PairCollator,
    answer_sums,
    chosen_documents,
    label_values,
)

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
# SmolLM3 has a layer without positions, Gemma-3 layers whose window is shorter than the prompts.
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "smollm3": lambda: SmolLM3ForCausalLM(SmolLM3Config(**SIZES, no_rope_layer_interval=2)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SIZES,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention"] * 2,
            query_pre_attn_scalar=8,
        )
    ),
}
PAIRS = [
    {
        "prompt_ids": [5, 9, 11, 4, 8, 2, 30],
        "chosen_ids": [7, 3],
        "rejected_ids": [7, 12, 9, 1],
        "group": 1,
    },
    {"prompt_ids": [6], "chosen_ids": [10, 20, 30], "rejected_ids": [40], "group": 0},
    {"prompt_ids": list(range(3, 15)), "chosen_ids": [21], "rejected_ids": [22, 23], "group": 1},
]


def model_of(name: str, layout: Layout) -> PreTrainedModel:
    torch.manual_seed(0)
    model = MODELS[name]().train()
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.5)
    model.set_attn_implementation(ATTENTION if layout == "shared" else "sdpa")
    add_label_scores(model)
    return model


def answers(model: PreTrainedModel, layout: Layout) -> tuple[Tensor, Tensor]:
    batch = PairCollator(layout=layout)(PAIRS)
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    return answer_sums(label_values(model(**inputs, fused_lm_head=True)), batch)


def alone(model: PreTrainedModel, side: str) -> Tensor:
    """The summed log-probability of each answer, from the logits of its row alone."""
    sums = []
    for pair in PAIRS:
        ids = pair["prompt_ids"] + pair[side]
        logits_TV = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        logps_T = logits_TV.log_softmax(-1).gather(1, torch.tensor(ids)[1:, None])[:, 0]
        sums.append(logps_T[len(pair["prompt_ids"]) - 1 :].sum())
    return torch.stack(sums)


def gradient(model: PreTrainedModel, chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    (torch.sigmoid(0.1 * chosen_P) - torch.sigmoid(0.05 * rejected_P)).sum().backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("name", MODELS)
def test_answers_and_gradients_are_those_of_each_row_alone(name: str, layout: Layout) -> None:
    model, plain = model_of(name, layout), model_of(name, "padded")
    ours, expected = (
        answers(model, layout),
        (alone(plain, "chosen_ids"), alone(plain, "rejected_ids")),
    )
    for sums_P, expected_P in zip(ours, expected, strict=True):
        torch.testing.assert_close(sums_P, expected_P, rtol=1e-5, atol=1e-5)
    got, wanted = gradient(model, *ours), gradient(plain, *expected)
    assert torch.cosine_similarity(got, wanted, dim=0) > 0.999999
    assert float(got.norm() / wanted.norm()) == pytest.approx(1, rel=1e-4)


def test_a_pair_is_its_prompt_and_two_branches() -> None:
    batch = PairCollator(layout="shared")(PAIRS[:2])
    assert batch["input_ids"].tolist() == [[5, 9, 11, 4, 8, 2, 30, 7, 30, 7, 12, 9, 6, 10, 20, 6]]
    ignored = [-100] * 6
    assert batch["shift_labels"].tolist() == [[*ignored, 7, 3, 7, 12, 9, 1, 10, 20, 30, 40]]
    assert batch["position_ids"].tolist() == [[*range(6), 6, 7, 6, 7, 8, 9, 0, 1, 2, 0]]
    assert batch["answer_lengths"] == (2, 4, 3, 1) and batch["prompt_lengths"] == (7, 1)
    assert batch["group_ids"].tolist() == [1, 0]


def test_padding_is_behind_a_mask_and_has_no_labels() -> None:
    batch = PairCollator(layout="padded", pad_token_id=0)(PAIRS[1:2])
    assert batch["input_ids"].tolist() == [[6, 10, 20], [6, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["shift_labels"].tolist() == [[10, 20, 30], [40, -100, -100]]


def test_the_references_log_probabilities_travel_with_the_pairs() -> None:
    pairs: list[dict[str, Any]] = [
        {**copy.deepcopy(PAIRS[0]), "ref_chosen_logps": -1.5, "ref_rejected_logps": -2.5}
    ]
    batch = PairCollator(layout="shared")(pairs)
    assert batch["ref_chosen_logps"] == (-1.5,)
    assert batch["ref_rejected_logps"] == (-2.5,)


@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_a_pair_is_shown_by_its_prompt_and_chosen_answer(layout: Layout) -> None:
    batch = PairCollator(layout=layout)(PAIRS[1:])
    documents = [ids.tolist() for ids in chosen_documents(batch)]
    assert documents == [[6, 10, 20], [*range(3, 15)]]
