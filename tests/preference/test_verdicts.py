"""What a recipe may ask of rated answers, and what is said of their counts before the first step."""

from typing import Any

import pytest

from dualign.cost.row_tokens import by_pairs, scored_tokens
from dualign.cost.stage_shape import rows_per_step, training_shape
from dualign.data.config import DataConfig, SourceConfig
from dualign.preference.config import PreferenceStage
from dualign.preference.verdicts import verdict_notes, weight_advice


def stage(loss: Any = "kto", *, batch_tokens: int | None = None, **train: Any) -> PreferenceStage:
    return PreferenceStage(
        name="kto",
        model="m",
        data=DataConfig(sources=(SourceConfig(path="rated.jsonl"),), packing="none"),
        batch_tokens=batch_tokens,
        train={"loss_type": loss, **train},
    )


def test_the_loss_says_which_rows_a_stage_takes() -> None:
    kinds = ["apo_zero", "kto", "apo_zero_unpaired", ["sigmoid", "sft"], "aot_unpaired"]
    assert [stage(kind).row_type for kind in kinds] == ["pair", "rated", "rated", "pair", "pair"]
    assert [stage(kind).answers_per_row for kind in kinds] == [2, 2, 1, 2, 2]
    assert stage("kto").reference_source == "copy"
    for kind in ("kto", "apo_zero_unpaired"):
        weighed = stage(kind, desirable_weight=0.5, undesirable_weight=2.0)
        assert not weighed.problems() and not weighed.unused()


@pytest.mark.parametrize(
    ("options", "key", "words"),
    [
        ({"loss": ["kto", "sigmoid"]}, "train.loss_type", "kto takes rated answers, sigmoid pairs"),
        (
            {"per_device_train_batch_size": 1},
            "train.per_device_train_batch_size",
            "with the answer of another row of its batch: expected 2 or more",
        ),
        ({"train_sampling_strategy": "random"}, "train.train_sampling_strategy", "every epoch"),
        ({"auto_find_batch_size": True}, "train.auto_find_batch_size", "may not change"),
        ({"batch_tokens": 4096}, "batch_tokens", "set train.per_device_train_batch_size"),
        ({"ld_alpha": 0.5}, "train.ld_alpha", "is for pairs"),
        ({"use_weighting": True}, "train.use_weighting", "is for pairs"),
        ({"desirable_weight": -1.0}, "train.desirable_weight", "0 or more"),
        ({"desirable_weight": 0, "undesirable_weight": 0}, "train.desirable_weight", "nothing"),
        ({"f_divergence_type": "js_divergence"}, "train.f_divergence_type", "not for kto"),
        ({"loss": "kto_pair"}, "train.loss_type", "here: bco_pair; kto, on answers without"),
    ],
)
def test_what_rated_answers_cant_have_is_refused_with_the_recipe(
    options: dict[str, Any], key: str, words: str
) -> None:
    issues = stage(**options).problems()
    assert [issue for issue in issues if issue[0] == key and words in issue[1]], issues


def test_weights_of_verdicts_are_refused_where_nothing_reads_them() -> None:
    assert stage("apo_zero", desirable_weight=2.0).unused() == [
        (
            "train.desirable_weight",
            "has no effect here: it belongs to kto, apo_zero_unpaired; remove it",
        )
    ]
    assert stage("kto", label_smoothing=0.1).unused()


@pytest.mark.parametrize(
    ("good", "bad", "weights", "advice"),
    [
        (100, 100, (1.0, 3.0), None),  # as TRL: equal counts need no advice
        (100, 80, (1.0, 1.0), None),  # 1.25
        (4, 3, (1.0, 1.0), None),
        (30, 10, (0.34, 1.0), None),
        (30, 10, (1.0, 1.0), "to 0.33 to 0.44, or train.undesirable_weight to 2.25 to 3.00"),
        (10, 30, (1.0, 1.0), "to 3.00 to 4.00, or train.undesirable_weight to 0.25 to 0.33"),
        (10, 30, (0.0, 1.0), None),
    ],
)
def test_weights_are_advised_as_in_the_paper(
    good: int, bad: int, weights: tuple[float, float], advice: str | None
) -> None:
    text = weight_advice(good, bad, weights)
    assert text is None if advice is None else advice in str(text)


def test_notes_count_both_verdicts_and_name_modes_of_one() -> None:
    by = [
        {"mode": "think", "desirable": 5, "undesirable": 0},
        {"mode": "no_think", "desirable": 1, "undesirable": 6},
    ]
    rows = {"desirable": 6, "undesirable": 6, "by": by}
    notes = list(verdict_notes(rows, {"loss_type": "kto"}))
    assert notes[0] == "6 desirable and 6 undesirable answers"
    assert len(notes) == 2 and notes[1].startswith("warning: all 5 think answers are desirable")


def test_plan_counts_the_mismatched_answer(rated_data: Any) -> None:
    # Prompts of 5 and 3, answers of 2 and 7.
    assert scored_tokens(rated_data, 2) == (10, 17, 2 * 17 / 2)
    assert scored_tokens(rated_data, 1) == (10, 10, 17 / 2)
    four = {"per_device_train_batch_size": 4}
    assert training_shape(stage(**four), longest=10, largest_pair=17).tokens == 4 * 17
    alone = stage("apo_zero_unpaired", **four)
    assert training_shape(alone, longest=10, largest_pair=10).tokens == 4 * 10
    assert training_shape(alone, longest=10, largest_pair=10).micro_batch == 4
    by_tokens = stage("apo_zero_unpaired", batch_tokens=20)
    assert rows_per_step(by_pairs(by_tokens, rated_data), world=1) == 2


@pytest.fixture
def rated_data() -> Any:
    from datasets import Dataset

    from dualign.data.prepare import RatedData

    rows = [
        {"prompt_ids": [1] * 5, "answer_ids": [1] * 2, "desirable": True, "group": 0},
        {"prompt_ids": [1] * 3, "answer_ids": [1] * 7, "desirable": False, "group": 0},
    ]
    train = Dataset.from_list(rows)
    return RatedData(train=train, validation=None, groups=(), rows={}, sources=())
