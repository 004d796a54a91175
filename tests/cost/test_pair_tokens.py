"""What `dualign plan` takes from the pairs themselves."""

from datasets import Dataset

from dualign.cost.plan import _pair_tokens
from dualign.data.prepare import PairData


def test_a_batch_of_pairs_is_as_wide_as_the_longest_prompt_with_its_longer_answer() -> None:
    rows = Dataset.from_list(
        [
            {"prompt_ids": [1] * 5, "chosen_ids": [1] * 2, "rejected_ids": [1] * 4},
            {"prompt_ids": [1] * 3, "chosen_ids": [1] * 7, "rejected_ids": [1]},
        ]
    )
    pairs = PairData(train=rows, validation=None, groups=(), rows={}, sources=())
    assert _pair_tokens(pairs) == (10, ((5 + 2 + 5 + 4) + (3 + 7 + 3 + 1)) / 2)
