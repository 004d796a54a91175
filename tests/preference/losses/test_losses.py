"""Losses of pairs against numbers worked by hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dualign.preference.losses.scores import (
    PairScores,
    RatedScores,
    Scores,
    kl_estimate,
    preference_loss,
    rewards,
    token_weights,
)
from dualign.preference.losses.settings import LossSettings, loss_settings
from dualign.preference.losses.table import LOSSES

# Two pairs. Log-ratios of chosen: 2, 0; of rejected: -2, 4. Tokens: 4 and 2, 5 and 8.
SCORES = PairScores(
    chosen=torch.tensor([-8.0, -10.0]),
    rejected=torch.tensor([-12.0, -16.0]),
    reference_chosen=torch.tensor([-10.0, -10.0]),
    reference_rejected=torch.tensor([-10.0, -20.0]),
    chosen_tokens=torch.tensor([4, 5]),
    rejected_tokens=torch.tensor([2, 8]),
)


# Log-ratios 2, 2, -2: two desirable answers, and one that isn't.
RATED = RatedScores(
    answer=torch.tensor([-8.0, -3.0, -12.0]),
    reference=torch.tensor([-10.0, -5.0, -10.0]),
    desirable=torch.tensor([True, True, False]),
    kl=torch.tensor(1.0),
)


def value(name: str, scores: Scores | None = None, **settings: object) -> list[float]:
    scores = scores or (RATED if LOSSES[name].of_rated else SCORES)
    loss_P = preference_loss(scores, loss_settings({"loss_type": name, **settings}))
    of_pairs = isinstance(scores, PairScores)
    assert loss_P.shape == (scores.chosen if of_pairs else scores.answer).shape
    return loss_P.tolist()


def rated_start() -> RatedScores:
    return replace(RATED, answer=RATED.reference, kl=torch.tensor(0.0))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def start() -> PairScores:
    """The first step: the policy is the reference."""
    chosen, rejected = torch.tensor([-8.0, -10.0, -3.0]), torch.tensor([-12.0, -1.0, -4.0])
    return PairScores(
        chosen=chosen,
        rejected=rejected,
        reference_chosen=chosen,
        reference_rejected=rejected,
        chosen_tokens=torch.tensor([4, 5, 1]),
        rejected_tokens=torch.tensor([2, 8, 3]),
    )


def log_sigmoid(x: float) -> float:
    return math.log(sigmoid(x))


def log_odds(mean: float) -> float:
    return mean - math.log(1 - math.exp(mean))


# At beta 0.5 the scaled ratios are 1 and -1 in the first pair, 0 and 2 in the second, so the scaled differences are
# 2 and -2. By token the ratios are 2/4 and -2/2, 0/5 and 4/8: differences of 1.5 and -0.5.
HALF = {"beta": 0.5}
NLL = (8 + 10) / (4 + 5)
BY_HAND = [
    ("sigmoid", HALF, [-log_sigmoid(2), -log_sigmoid(-2)]),
    ("sigmoid_norm", HALF, [-log_sigmoid(0.75), -log_sigmoid(-0.25)]),
    ("ipo", HALF, [0.5**2, 1.5**2]),  # 1 / (2 beta) = 1
    ("hinge", HALF, [0, 3]),
    # (0.75 right - 0.25 wrong) / 0.5
    (
        "robust",
        {**HALF, "label_smoothing": 0.25},
        [
            -1.5 * log_sigmoid(2) + 0.5 * log_sigmoid(-2),
            -1.5 * log_sigmoid(-2) + 0.5 * log_sigmoid(2),
        ],
    ),
    (
        "exo_pair",
        {**HALF, "label_smoothing": 0.25},
        [
            q * math.log(q / 0.75) + (1 - q) * math.log((1 - q) / 0.25)
            for q in (sigmoid(2), sigmoid(-2))
        ],
    ),
    (
        "nca_pair",
        HALF,
        [
            -log_sigmoid(1) - log_sigmoid(-1) / 2 - log_sigmoid(1) / 2,
            1.5 * math.log(2) - log_sigmoid(-2) / 2,
        ],
    ),
    ("bco_pair", HALF, [-2 * log_sigmoid(1), math.log(2) - log_sigmoid(-2)]),
    ("sppo_hard", HALF, [1 + 1, 1 + 25]),  # targets 1 and -1 for ratios 2 and -2, 0 and 4
    # Margins 4 and 6 of the policy, 0 and 10 of the reference: sorted differences 4 and -4.
    ("aot", HALF, [-log_sigmoid(2), -log_sigmoid(-2)]),
    # Sorted: 0, 2 of chosen, -2, 4 of rejected, so 2 and -2.
    ("aot_unpaired", HALF, [-log_sigmoid(1), -log_sigmoid(-1)]),
    (
        "aot_unpaired",
        {**HALF, "label_smoothing": 0.5},
        [-log_sigmoid(1) / 2 - log_sigmoid(-1) / 2] * 2,
    ),
    ("apo_zero", HALF, [1 - sigmoid(1) + sigmoid(-1), 0.5 + sigmoid(2)]),
    ("apo_down", HALF, [sigmoid(1) + 1 - sigmoid(2), 0.5 + 1 - sigmoid(-2)]),
    (
        "discopop",
        {**HALF, "discopop_tau": 1.0},
        [-log_sigmoid(m) * sigmoid(-m) + math.exp(-m) * sigmoid(m) for m in (2, -2)],
    ),
    ("sft", {}, [NLL, NLL]),
    # Means by token: -2 and -6, -2 and -2. Margins of 4 and 0.
    ("simpo", {"beta": 2.0, "simpo_gamma": 1.0}, [-log_sigmoid(7), -log_sigmoid(-1)]),
    # Sums: -8 and -12, -10 and -16.
    ("cpo", {**HALF, "cpo_alpha": 0.5}, [NLL / 2 - log_sigmoid(2), NLL / 2 - log_sigmoid(3)]),
    # Distances from z = 1 at beta 0.5: 0.5, 0.5, and -1.5, which is negated for the undesirable answer.
    (
        "kto",
        {**HALF, "desirable_weight": 0.5, "undesirable_weight": 2.0},
        [0.5 * (1 - sigmoid(0.5)), 0.5 * (1 - sigmoid(0.5)), 2 * (1 - sigmoid(1.5))],
    ),
    (
        "apo_zero_unpaired",
        {**HALF, "undesirable_weight": 2.0},
        [1 - sigmoid(1), 1 - sigmoid(1), 2 * sigmoid(-1)],
    ),
    ("orpo", HALF, [NLL - log_sigmoid(log_odds(-2) - log_odds(-6)) / 2, NLL + math.log(2) / 2]),
]


@pytest.mark.parametrize(("name", "settings", "expected"), BY_HAND)
def test_a_loss_by_hand(name: str, settings: dict, expected: list[float]) -> None:
    assert value(name, **settings) == pytest.approx(expected, rel=1e-5)


def test_every_loss_has_a_number_by_hand_and_one_at_the_start() -> None:
    assert {name for name, *_ in BY_HAND} == set(LOSSES)
    with_reference = {name for name, loss in LOSSES.items() if loss.needs_reference}
    assert {name for name, *_ in AT_THE_START} == with_reference


AT_THE_START = [
    ("sigmoid", math.log(2)),
    ("sigmoid_norm", math.log(2)),
    ("ipo", 25.0),
    ("hinge", 1.0),
    ("robust", math.log(2)),
    ("exo_pair", math.log(0.5) - math.log(0.1 * 0.9) / 2),
    ("nca_pair", 2 * math.log(2)),
    ("bco_pair", 2 * math.log(2)),
    ("sppo_hard", 50.0),
    ("aot", math.log(2)),
    ("aot_unpaired", math.log(2)),
    ("apo_zero", 1.0),
    ("apo_down", 1.0),
    ("discopop", (math.log(2) + 1) / 2),
    ("kto", 0.5),
    ("apo_zero_unpaired", 0.5),
]


@pytest.mark.parametrize(("name", "expected"), AT_THE_START)
def test_a_loss_before_the_first_step(name: str, expected: float) -> None:
    """open-instruct's packed DPO started at 6 ln 2: its ratios weren't 0."""
    scores = rated_start() if LOSSES[name].of_rated else start()
    assert value(name, scores, label_smoothing=0.1) == pytest.approx([expected] * 3, rel=1e-6)


# The first pair's chosen ratio is 2, so t = e^2; its rejected t = e^-2.
@pytest.mark.parametrize(
    ("kind", "chosen", "rejected"),
    [
        ("reverse_kl", 2.0, -2.0),
        ("forward_kl", 1 - math.exp(-2), 1 - math.exp(2)),
        ("js_divergence", math.log(2 * sigmoid(2)), math.log(2 * sigmoid(-2))),
        ("alpha_divergence", (math.exp(-1) - 1) / -0.5, (math.exp(1) - 1) / -0.5),
    ],
)
def test_an_f_divergence_by_hand(kind: str, chosen: float, rejected: float) -> None:
    loss = value("hinge", beta=0.1, f_divergence_type=kind)[0]
    assert loss == pytest.approx(max(0, 1 - 0.1 * (chosen - rejected)), rel=1e-5)
    assert value("sigmoid", start(), f_divergence_type=kind) == pytest.approx([math.log(2)] * 3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "reverse_kl") for name, loss in LOSSES.items() if not loss.of_rated),
        *(("sigmoid", kind) for kind in ("forward_kl", "js_divergence", "alpha_divergence")),
    ],
)
def test_loss_and_gradient_stay_finite_far_from_the_reference(name: str, kind: str) -> None:
    chosen = torch.tensor([-2000.0, -1e-9, -0.5], requires_grad=True)
    rejected = torch.tensor([-1e-9, -2000.0, 0.0], requires_grad=True)
    scores = replace(
        start(),
        chosen=chosen,
        rejected=rejected,
        reference_chosen=torch.full((3,), -900.0),
        reference_rejected=torch.full((3,), -900.0),
    )
    train = {"loss_type": name, "label_smoothing": 0.1, "f_divergence_type": kind}
    loss = preference_loss(scores, loss_settings(train)).mean()
    loss.backward()
    assert loss.isfinite()
    assert chosen.grad.isfinite().all()
    assert rejected.grad is None or rejected.grad.isfinite().all()


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_losses_of_rated_answers_stay_finite_far_from_the_reference(name: str) -> None:
    answer = torch.tensor([-2000.0, -1e-9, -0.5], requires_grad=True)
    scores = replace(
        RATED, answer=answer, reference=torch.full((3,), -900.0), kl=torch.tensor(800.0)
    )
    preference_loss(scores, loss_settings({"loss_type": name})).mean().backward()
    assert answer.grad.isfinite().all()


def test_the_kl_of_kto_is_the_mean_log_ratio_of_other_rows_answers_without_gradient() -> None:
    mismatched = torch.tensor([-8.0, -3.0], requires_grad=True)
    kl = kl_estimate(mismatched, torch.tensor([-10.0, -9.0]))
    assert kl.item() == 4.0 and not kl.requires_grad


def test_weights_of_pairs_scale_their_losses() -> None:
    """WPO: a pair that the policy itself would hardly write counts less."""
    weighted = preference_loss(
        replace(SCORES, weights=torch.tensor([0.5, 0.25])), loss_settings({"loss_type": "hinge"})
    )
    plain = value("hinge")
    assert weighted.tolist() == pytest.approx([plain[0] / 2, plain[1] / 4])


def test_what_an_answer_has_beyond_the_other_weighs_less() -> None:
    weights = token_weights(torch.tensor([3, 2]), torch.tensor([5, 1]), 0.5)
    assert weights.tolist() == [1, 1, 1, 1, 1, 1, 0.5, 0.5, 1, 0.5, 1]


def test_rewards_are_log_ratios_or_without_a_reference_log_probabilities() -> None:
    alone = replace(SCORES, reference_chosen=None, reference_rejected=None)
    for names, scores, chosen, rejected in (
        ("apo_zero", SCORES, [1, 0], [-1, 2]),
        (["sigmoid", "simpo"], SCORES, [1, 0], [-1, 2]),
        ("cpo", alone, [-4, -5], [-6, -8]),
        ("sft", alone, [-4, -5], [-6, -8]),
        (["simpo", "sft"], alone, [-1, -1], [-3, -1]),
    ):
        pair = rewards(scores, loss_settings({"loss_type": names, "beta": 0.5}))
        assert [values.tolist() for values in pair] == [chosen, rejected], names


def test_a_mix_is_the_weighted_sum_of_its_losses() -> None:
    mix = {"loss_type": ["sigmoid", "apo_zero"], "loss_weights": [0.25, 2.0], "beta": 0.3}
    mixed_P = preference_loss(SCORES, loss_settings(mix))
    parts = value("sigmoid", beta=0.3), value("apo_zero", beta=0.3)
    assert mixed_P.tolist() == pytest.approx(
        [0.25 * first + 2 * second for first, second in zip(*parts, strict=True)]
    )


def test_settings_are_read_by_trls_names() -> None:
    assert loss_settings({}) == LossSettings(losses=(("apo_zero", 1.0),), beta=0.1)
    train = {"loss_type": "ipo", "beta": 0.2, "learning_rate": 1e-6, "loss_weights": None}
    assert loss_settings(train) == LossSettings(losses=(("ipo", 1.0),), beta=0.2)


def test_every_row_of_the_table_has_its_function() -> None:
    assert all(callable(loss.function) for loss in LOSSES.values())


def test_the_page_has_a_row_for_each_loss_with_its_paper_and_reference() -> None:
    page = (Path(__file__).parents[3] / "docs" / "preference.md").read_text(encoding="utf-8")
    rows = {
        cells[1].split("`")[1]: cells
        for line in page.splitlines()
        if len(cells := line.split("|")) == 9 and "`" in cells[1] and "arxiv" in cells[7]
    }
    assert set(rows) == set(LOSSES)
    for name, loss in LOSSES.items():
        assert f"https://arxiv.org/abs/{loss.paper})" in rows[name][7], name
        assert rows[name][4].strip() == ("yes" if loss.needs_reference else "no"), name
