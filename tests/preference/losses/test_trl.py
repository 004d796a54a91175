"""Losses and their gradients against TRL's own DPOTrainer: one tiny model, one batch, every loss."""

import warnings
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

from dualign.preference.losses.scores import PairScores, preference_loss, rewards, token_weights
from dualign.preference.losses.settings import loss_settings
from dualign.preference.losses.table import LOSSES
from tests.chat_model import make_tokenizer

SETTINGS = (
    "beta",
    "label_smoothing",
    "ld_alpha",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "use_weighting",
)
# Those of rated answers: tests/preference/test_rated.py.
OF_TRL = [
    name
    for name, loss in LOSSES.items()
    if name not in ("simpo", "cpo", "orpo") and not loss.of_rated
]
MIXES = [
    *({"loss_type": name, "beta": 0.3} for name in OF_TRL if name != "exo_pair"),
    *(
        {"loss_type": name, "beta": 0.3, "label_smoothing": 0.1}
        for name in ("exo_pair", "robust", "aot", "aot_unpaired")
    ),
    *(
        {"loss_type": name, "beta": 0.2, "f_divergence_type": kind}
        for name in ("sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "discopop")
        for kind in ("forward_kl", "js_divergence", "alpha_divergence")
    ),
    {
        "loss_type": "sigmoid",
        "f_divergence_type": "alpha_divergence",
        "f_alpha_divergence_coef": 1.0,
    },
    {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    {"loss_type": ["sigmoid", "sft"], "ld_alpha": 0.3},
    {"loss_type": "apo_zero", "ld_alpha": 0.0},
    {"loss_type": ["apo_zero", "sigmoid"], "use_weighting": True},
    {"loss_type": "discopop", "discopop_tau": 0.2},
]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> DPOTrainer:
    """A trainer whose policy is another model than its reference, and a batch with both lengths."""
    tokenizer = make_tokenizer()
    answers = [("short", "a longer answer"), ("a much longer answer", "no"), ("same", "mass")]
    rows = [
        {"prompt": "What? " * (i + 1), "chosen": chosen, "rejected": rejected}
        for i, (chosen, rejected) in enumerate(answers)
    ]
    result = DPOTrainer(
        model=_model(1, len(tokenizer)),
        ref_model=_model(2, len(tokenizer)),
        args=DPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            per_device_train_batch_size=len(rows),
            use_weighting=True,  # so that the head gives what the weights need
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    result.model.eval()
    return result


def _model(seed: int, vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def batch(trainer: DPOTrainer) -> dict[str, Any]:
    return next(iter(trainer.get_train_dataloader()))


def scores_of(trainer: DPOTrainer, batch: dict[str, Any], settings: dict[str, Any]) -> PairScores:
    """The batch's scores by the plain softmax of each model."""
    mask_BT = batch["completion_mask"][:, 1:]
    counts_B = mask_BT.sum(dim=1)
    chosen_tokens, rejected_tokens = counts_B.chunk(2)
    alpha = settings.get("ld_alpha")
    weights_BT = torch.ones_like(mask_BT, dtype=torch.float32)
    if alpha is not None:
        of_pairs = token_weights(chosen_tokens, rejected_tokens, alpha)
        order = torch.stack([chosen_tokens, rejected_tokens], dim=1).flatten().tolist()
        answers = of_pairs.split(order)
        for row, weights_N in enumerate([*answers[0::2], *answers[1::2]]):
            weights_BT[row, mask_BT[row].bool()] = weights_N

    def log_probs(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        kept = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits_BTV = model(**kept).logits[:, :-1].log_softmax(dim=-1)
        label_BT = logits_BTV.gather(2, batch["input_ids"][:, 1:, None])[..., 0]
        return label_BT * mask_BT, logits_BTV.mul(2).logsumexp(dim=-1) * mask_BT

    policy_BT, squares_BT = log_probs(trainer.model)
    with torch.no_grad():
        reference_BT, _ = log_probs(trainer.ref_model)
    chosen, rejected = (policy_BT * weights_BT).sum(dim=1).chunk(2)
    reference = (reference_BT * weights_BT).sum(dim=1).chunk(2)
    first, second = ((policy_BT - squares_BT).detach().sum(dim=1) / counts_B).exp().chunk(2)
    return PairScores(
        chosen=chosen,
        rejected=rejected,
        reference_chosen=reference[0],
        reference_rejected=reference[1],
        chosen_tokens=chosen_tokens,
        rejected_tokens=rejected_tokens,
        unweighted_chosen=policy_BT.sum(dim=1).chunk(2)[0],
        weights=first * second if settings.get("use_weighting") else None,
    )


def gradient(trainer: DPOTrainer, loss: torch.Tensor) -> torch.Tensor:
    parts = torch.autograd.grad(loss, list(trainer.model.parameters()))
    return torch.cat([part.flatten() for part in parts])


def of_trl(trainer: DPOTrainer, batch: dict[str, Any], settings: dict[str, Any]) -> torch.Tensor:
    """TRL's loss of the batch under other settings."""
    defaults = {field.name: field.default for field in fields(DPOConfig)}
    names = settings["loss_type"]
    trainer.loss_types = [names] if isinstance(names, str) else names
    trainer.loss_weights = settings.get("loss_weights") or [1.0] * len(trainer.loss_types)
    for name in SETTINGS:
        setattr(trainer, name, settings.get(name, defaults[name]))
    trainer.args.discopop_tau = settings.get("discopop_tau", defaults["discopop_tau"])
    return trainer.compute_loss(trainer.model, dict(batch))


@pytest.mark.parametrize("settings", MIXES, ids=lambda item: "-".join(map(str, item.values())))
def test_loss_and_gradient_equal_trls(
    trainer: DPOTrainer, batch: dict[str, Any], settings: dict[str, Any]
) -> None:
    theirs = of_trl(trainer, batch, settings)
    their_gradient = gradient(trainer, theirs)
    ours = preference_loss(scores_of(trainer, batch, settings), loss_settings(settings)).mean()
    own_gradient = gradient(trainer, ours)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    cosine = torch.cosine_similarity(own_gradient.double(), their_gradient.double(), dim=0)
    assert cosine > 0.999999
    assert own_gradient.norm().item() == pytest.approx(their_gradient.norm().item(), rel=1e-4)


@pytest.fixture
def references_of_its_own(trainer: DPOTrainer, batch: dict[str, Any]) -> PairScores:
    scores = scores_of(trainer, batch, {})
    return PairScores(
        chosen=scores.chosen,
        rejected=scores.rejected,
        reference_chosen=None,
        reference_rejected=None,
        chosen_tokens=scores.chosen_tokens,
        rejected_tokens=scores.rejected_tokens,
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ["simpo", "cpo"])
def test_losses_without_a_reference_equal_those_of_cpo_trainer(
    references_of_its_own: PairScores, name: str, smoothing: float
) -> None:
    scores, mean = references_of_its_own, name == "simpo"
    trl = SimpleNamespace(
        alpha=0.0,
        beta=2.0,
        simpo_gamma=0.7,
        label_smoothing=smoothing,
        loss_type="simpo" if mean else "sigmoid",
        accelerator=SimpleNamespace(device="cpu"),
    )
    means = (scores.chosen_mean, scores.rejected_mean)
    theirs, *their_rewards = CPOTrainer.cpo_loss(
        trl, *(means if mean else (scores.chosen, scores.rejected))
    )
    if not mean:
        theirs = theirs - 0.5 * scores.chosen.sum() / scores.chosen_tokens.sum()
    train = {"loss_type": name, "beta": 2.0, "simpo_gamma": 0.7, "cpo_alpha": 0.5}
    settings = loss_settings({**train, "label_smoothing": smoothing})
    assert preference_loss(scores, settings).tolist() == pytest.approx(theirs.tolist(), rel=1e-5)
    for ours, expected in zip(rewards(scores, settings), their_rewards, strict=True):
        assert ours.tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_the_odds_ratio_equals_that_of_orpo_trainer(references_of_its_own: PairScores) -> None:
    scores = references_of_its_own
    trl = SimpleNamespace(beta=0.4, accelerator=SimpleNamespace(device="cpu"))
    ratios, *their_rewards, _, _ = ORPOTrainer.odds_ratio_loss(
        trl, scores.chosen_mean, scores.rejected_mean
    )
    theirs = -scores.chosen.sum() / scores.chosen_tokens.sum() - ratios
    settings = loss_settings({"loss_type": "orpo", "beta": 0.4})
    assert preference_loss(scores, settings).tolist() == pytest.approx(theirs.tolist(), rel=1e-5)
    for ours, expected in zip(rewards(scores, settings), their_rewards, strict=True):
        assert ours.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
