"""Scores of labels equal what the model's own logits give, and what TRL's head gives."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)
from trl.trainer.utils import add_fused_lm_head

from dualign.models import token_scores
from dualign.models.head import add_label_scores
from dualign.models.token_scores import LogitForm, score_labels

EXTRAS = ("entropy", "mean_logits", "is_top1", "log_sum_sq_probs")
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
# Gemma-2 caps the logits, Cohere multiplies and Granite divides them, Phi's head has a bias.
MODELS = {
    "plain": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "softcap": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=0.5)),
    "multiplied": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=3.0)),
    "divided": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)),
    "bias": lambda: PhiForCausalLM(PhiConfig(**SIZES)),
    "experts": lambda: MixtralForCausalLM(
        MixtralConfig(**SIZES, num_local_experts=4, output_router_logits=True)
    ),
}


def model_of(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = MODELS[name]()
    head = model.get_output_embeddings()
    torch.nn.init.normal_(head.weight, std=0.5)
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    return model


def batch() -> tuple[Tensor, Tensor]:
    """Ids [2, 12], and labels of which most are -100."""
    torch.manual_seed(1)
    ids_BT = torch.randint(0, SIZES["vocab_size"], (2, 12))
    labels_BT = ids_BT.clone()
    labels_BT[0, :7] = -100
    labels_BT[1, 5:9] = -100
    return ids_BT, labels_BT


def gradients(model: PreTrainedModel, loss: Tensor) -> Tensor:
    model.zero_grad()
    loss.backward()
    parts = [p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]
    return torch.cat(parts)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("name", MODELS)
def test_figures_and_gradients_equal_trls(name: str, frozen: bool) -> None:
    model = model_of(name)
    if frozen:
        for parameter in (
            *model.get_output_embeddings().parameters(),
            *model.get_input_embeddings().parameters(),
        ):
            parameter.requires_grad = False
    theirs = copy.deepcopy(model)
    add_fused_lm_head(theirs, outputs=("log_probs", *EXTRAS))
    add_label_scores(model, EXTRAS)
    ids_BT, labels_BT = batch()
    results = [m(input_ids=ids_BT, labels=labels_BT, fused_lm_head=True) for m in (model, theirs)]
    for field in ("loss", "log_probs", "label_mask", *EXTRAS):
        torch.testing.assert_close(
            *(getattr(result, field) for result in results), rtol=1e-5, atol=1e-5
        )
    weights_BT = torch.linspace(-1, 2, 22).reshape(2, 11)
    ours, expected = (
        gradients(m, (result.log_probs * weights_BT).sum() + result.loss)
        for m, result in zip((model, theirs), results, strict=True)
    )
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("experts", [4, 0])
def test_a_router_is_balanced_as_the_model_does_it(experts: int) -> None:
    """Granite's config has another name for the number of experts, and dense models have its class."""
    sizes = {key: value for key, value in SIZES.items() if key != "head_dim"}
    config = GraniteMoeHybridConfig(
        **sizes,
        layer_types=["attention", "attention"],
        mamba_n_heads=8,
        num_local_experts=experts,
        num_experts_per_tok=2,
        shared_intermediate_size=32,
        router_aux_loss_coef=0.5,
    )
    torch.manual_seed(0)
    model = GraniteMoeHybridForCausalLM(config)
    ids_BT, labels_BT = batch()
    inputs = {"input_ids": ids_BT, "labels": labels_BT, "attention_mask": torch.ones_like(ids_BT)}
    expected = model(**inputs, output_router_logits=bool(experts)).loss
    add_label_scores(model)
    got = model(**inputs, output_router_logits=True, fused_lm_head=True)
    torch.testing.assert_close(got.loss, expected)
    assert bool(got.aux_loss) == bool(experts)


def test_extras_are_computed_only_when_asked_for() -> None:
    model = model_of("plain")
    add_label_scores(model, ("entropy",))
    ids_BT, labels_BT = batch()
    output = model(input_ids=ids_BT, labels=labels_BT, fused_lm_head=True)
    assert output.entropy is not None and output.is_top1 is None
    output = model(input_ids=ids_BT, labels=labels_BT, fused_lm_head=True, extras=())
    assert output.entropy is None
    assert model(input_ids=ids_BT).logits.shape == (2, 12, SIZES["vocab_size"])


@pytest.mark.parametrize("trained", [False, True])
def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch, trained: bool) -> None:
    torch.manual_seed(0)
    hidden_ND, labels_N = torch.randn(150, 8, requires_grad=True), torch.randint(0, 30, (150,))
    weight_VD = torch.randn(30, 8, requires_grad=trained)

    def outcome() -> list[Tensor]:
        scores = score_labels(
            hidden_ND, weight_VD, None, labels_N, form=LogitForm(2.0, 3.0), extras=EXTRAS
        )
        inputs = [hidden_ND, weight_VD] if trained else [hidden_ND]
        loss = (scores.log_probs * torch.linspace(-1, 1, 150)).sum()
        return [*scores, *torch.autograd.grad(loss, inputs)]

    whole = outcome()
    monkeypatch.setattr(token_scores, "_MOST_ROWS", 64)
    torch.testing.assert_close(outcome(), whole)


def test_a_batch_without_labels_has_a_zero_gradient() -> None:
    model = model_of("plain")
    add_label_scores(model, EXTRAS)
    ids_BT, labels_BT = batch()
    output = model(input_ids=ids_BT, labels=torch.full_like(labels_BT, -100), fused_lm_head=True)
    assert float(gradients(model, output.loss).abs().max()) == 0.0


def test_autocast_computes_the_head_in_16_bits_and_its_figures_in_32() -> None:
    model = model_of("plain").requires_grad_(requires_grad=False)
    model.model.requires_grad_()
    add_label_scores(model)
    ids_BT, labels_BT = batch()
    exact = model(input_ids=ids_BT, labels=labels_BT, fused_lm_head=True).log_probs
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(input_ids=ids_BT, labels=labels_BT, fused_lm_head=True).log_probs
    assert rounded.dtype == torch.float32
    assert 1e-5 < float((rounded - exact).detach().abs().max()) < 0.2
