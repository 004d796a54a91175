"""Batches bounded by tokens: every pair once, the bound kept, as many for each rank."""

import pytest

from dualign.errors import ConfigError
from dualign.models.pairs import pair_sizes
from dualign.preference.batches import TokenBatches

SIZES = [5, 30, 12, 9, 22, 17, 40, 3, 3, 8, 25]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_pair_is_in_one_batch_within_the_bound(ranks: int) -> None:
    batches = list(TokenBatches(SIZES, 40, ranks=ranks, seed=7))
    assert sorted(place for batch in batches for place in batch) == list(range(len(SIZES)))
    assert all(sum(SIZES[place] for place in batch) <= 40 for batch in batches)
    assert len(batches) % ranks == 0


def test_epochs_have_the_same_batches_in_another_order() -> None:
    batches = TokenBatches(SIZES, 40, ranks=1, seed=7)
    first = list(batches)
    batches.set_epoch(1)
    second = list(batches)
    assert first != second and sorted(first) == sorted(second)
    again = TokenBatches(SIZES, 40, ranks=1, seed=7)
    again.set_epoch(1)
    assert list(again) == second
    assert len(batches) == len(first)


def test_a_pair_beyond_the_bound_is_refused() -> None:
    pairs = [
        {"prompt_ids": [0] * 5, "chosen_ids": [0] * size, "rejected_ids": [0]} for size in (3, 9, 4)
    ]
    assert pair_sizes(pairs, "shared", most=14) == [8, 14, 9]
    with pytest.raises(ConfigError, match=r"the pair in place 1 has 18 tokens.*bound of 17"):
        pair_sizes(pairs, "padded", most=17)


def test_more_ranks_than_pairs_leave_a_batch_for_each_pair() -> None:
    assert sorted(TokenBatches([4, 5], 10, ranks=3, seed=0)) == [[0], [1]]
