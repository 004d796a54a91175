"""How often a run on many cards fails, and how often it should save."""

import pytest

from dualign.cost.failures import best_interval, checkpoint_bytes, hours_to_failure, lost_share
from tests.cost.test_memory import PARAMETERS, SMOLLM3


def test_cards_fail_as_those_of_llama_did() -> None:
    assert hours_to_failure(16_384) == pytest.approx(54 * 24 / 419)
    assert hours_to_failure(1000) == pytest.approx(50.7, abs=0.05)


def test_a_checkpoint_has_masters_states_and_weights() -> None:
    assert checkpoint_bytes(SMOLLM3) == (2 + 4 + 8) * PARAMETERS


def test_no_other_interval_loses_less() -> None:
    best = best_interval(20, 1000)
    losses = [
        lost_share(interval, 20, 1000, restart_seconds=600)
        for interval in (best, 0.9 * best, 1.1 * best)
    ]
    assert losses[0] == min(losses)
    # saving, and half an interval, cost the same there
    assert losses[0] == pytest.approx(2 * 20 / best + 600 / (3600 * hours_to_failure(1000)))
