"""Losses of pairs against numbers worked by hand."""

import math

import pytest
import torch

from dualign.preference.losses.scores import PairScores, preference_loss
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


def value(name: str, scores: PairScores = SCORES, **settings: object) -> list[float]:
    loss_P = preference_loss(scores, loss_settings({"loss_type": name, **settings}))
    assert loss_P.shape == scores.chosen.shape
    return loss_P.tolist()


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


# At beta 0.5 the scaled ratios are 1 and -1 in the first pair, 0 and 2 in the second.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sigmoid", [-math.log(sigmoid(2)), -math.log(sigmoid(-2))]),
        # 2/4 - (-2)/2 = 1.5 and 0/5 - 4/8 = -0.5; 1 / (2 beta) = 1
        ("ipo", [0.5**2, 1.5**2]),
        ("apo_zero", [1 - sigmoid(1) + sigmoid(-1), 0.5 + sigmoid(2)]),
        ("apo_down", [sigmoid(1) + 1 - sigmoid(2), 0.5 + 1 - sigmoid(-2)]),
    ],
)
def test_a_loss_by_hand(name: str, expected: list[float]) -> None:
    assert value(name, beta=0.5) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sigmoid", math.log(2)), ("ipo", 25.0), ("apo_zero", 1.0), ("apo_down", 1.0)],
)
def test_a_loss_before_the_first_step(name: str, expected: float) -> None:
    """open-instruct's packed DPO started at 6 ln 2: its ratios weren't 0."""
    assert value(name, start()) == pytest.approx([expected] * 3, rel=1e-6)


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
