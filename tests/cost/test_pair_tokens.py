"""What `dualign plan` takes from the pairs themselves."""

from dataclasses import replace

from datasets import Dataset

from dualign.cost.row_tokens import by_pairs, scored_tokens
from dualign.cost.stage_shape import rows_per_step, training_shape
from dualign.data.config import DataConfig, SourceConfig
from dualign.data.prepare import PairData
from dualign.preference.config import PreferenceStage


def test_a_batch_of_pairs_is_as_wide_as_the_longest_prompt_with_its_longer_answer() -> None:
    rows = Dataset.from_list(
        [
            {"prompt_ids": [1] * 5, "chosen_ids": [1] * 2, "rejected_ids": [1] * 4},
            {"prompt_ids": [1] * 3, "chosen_ids": [1] * 7, "rejected_ids": [1]},
        ]
    )
    pairs = PairData(train=rows, validation=None, groups=(), rows={}, sources=())
    assert scored_tokens(pairs, 2) == (10, 11, ((5 + 2 + 5 + 4) + (3 + 7 + 3 + 1)) / 2)


def test_batches_by_tokens_are_counted_in_pairs() -> None:
    pairs = [{"prompt_ids": [1] * 5, "chosen_ids": [1] * 2, "rejected_ids": [1] * 3}] * 6
    data = PairData(train=Dataset.from_list(pairs), validation=None, groups=(), rows={}, sources=())
    stage = PreferenceStage(
        name="apo",
        model="m",
        data=DataConfig(sources=(SourceConfig(path="pairs.jsonl"),), packing="none"),
        batch_tokens=35,
        train={"gradient_accumulation_steps": 2},
    )
    assert rows_per_step(by_pairs(stage, data), world=1) == 3 * 2
    shape = training_shape(stage, longest=8, largest_pair=10)
    assert shape.tokens == 35
    whole = training_shape(replace(stage, batch_tokens=None), longest=8, largest_pair=10)
    assert whole.tokens == 8 * 10  # a prompt once
    padded = replace(stage, batch_tokens=None, attn_implementation="eager")
    assert training_shape(padded, longest=8, largest_pair=10).tokens == 16 * 8
