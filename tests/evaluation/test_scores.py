"""Intervals and differences, against published figures."""

import pytest

from dualign.errors import EvaluationError
from dualign.evaluation.scores import (
    Change,
    ModelScores,
    Score,
    change,
    change_text,
    gain_text,
    mean_interval,
    ratio_change,
    read_scores,
    score_text,
    short_label,
)
from dualign.intervals import wilson
from tests.report.conftest import Record


def _score(right: int, n: int) -> Score:
    low, high = wilson(right / n, n)
    return Score(accuracy=right / n, low=low, high=high, n=n)


def test_wilson_interval_of_8_in_10() -> None:
    # (0.8 + 0.19207 +- 1.96 * sqrt(0.016 + 0.009604)) / 1.38415, worked by hand
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_wilson_interval_stays_within_0_and_1_and_has_a_width(accuracy: float) -> None:
    low, high = wilson(accuracy, 40)
    assert 0 <= low < high <= 1
    assert wilson(accuracy, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("after", "before", "expected"),
    [
        # Newcombe, Statistics in Medicine 17 (1998) 873-890, table II, method 10
        ((56, 70), (48, 80), (0.2, 0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.6, 0.1705, 0.8090)),
        ((10, 10), (0, 20), (1.0, 0.6791, 1.0)),
    ],
)
def test_difference_has_newcombes_interval(
    after: tuple[int, int], before: tuple[int, int], expected: tuple[float, float, float]
) -> None:
    found = change(_score(*after), _score(*before))
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx(expected, abs=1e-4)


def test_equal_models_have_no_measurable_change() -> None:
    found = change(_score(30, 60), _score(30, 60))
    assert found is not None
    assert found.value == 0
    assert found.low == pytest.approx(-found.high)
    assert not found.measurable


def test_texts_put_what_is_not_measurable_in_brackets() -> None:
    assert score_text(Score(accuracy=0.8, low=0.711, high=0.867, n=90)) == "80.0 [71, 87]"
    sure, unsure = Change(value=0.6, low=0.5, high=0.7), Change(value=-0.02, low=-0.1, high=0.06)
    assert (gain_text(sure), gain_text(unsure)) == ("+60.0", "(-2.0)")
    assert change_text(unsure) == "(-2.0 [-10.0, +6.0])"
    assert (score_text(None), gain_text(None), change_text(None)) == ("-", "-", "-")


def test_mean_of_lengths_has_a_normal_interval() -> None:
    # 2, 4, 6: mean 4, standard deviation 2, spread 1.96 * 2 / sqrt(3)
    found = mean_interval([2, 4, 6])
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((4, 1.7368, 6.2632), abs=1e-4)
    assert mean_interval([2]) is None


def test_ratio_of_lengths_on_the_same_problems_by_hand() -> None:
    # means 20 and 15, ratio 0.75; after - 0.75 * before is 2.5, 0, -2.5 with standard deviation 2.5:
    # spread 1.96 * 2.5 / sqrt(3) / 20
    found = ratio_change([10, 20, 30], [10, 15, 20])
    assert found is not None
    expected = (-0.25, -0.25 - 0.14145, -0.25 + 0.14145)
    assert (found.value, found.low, found.high) == pytest.approx(expected, abs=1e-4)


def test_ratio_of_lengths_sees_less_noise_than_the_lengths_have() -> None:
    before = [10, 100, 1000]
    found = ratio_change(before, [8, 80, 800])
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((-0.2, -0.2, -0.2))


@pytest.mark.parametrize("before", [[], [5], [0, 0, 1]])
def test_share_of_hardly_any_thinking_is_not_given(before: list[int]) -> None:
    assert ratio_change(before, [3] * len(before)) is None


def test_recorded_interval_is_used_and_a_missing_one_is_computed() -> None:
    cells: dict[str, Record] = {
        "think": {"accuracy": 0.5, "n": 4, "accuracy_ci": [0.1, 0.9]},
        "no_think": {"accuracy": 0.5, "n": 4},
    }
    scores = ModelScores(model="m", tasks={"sums": cells})
    think, plain = scores.score("sums", "think"), scores.score("sums", "no_think")
    assert think is not None and (think.low, think.high) == (0.1, 0.9)
    assert plain is not None and (plain.low, plain.high) == wilson(0.5, 4)
    assert scores.score("cups", "think") is None


def test_recorded_gain_is_used() -> None:
    think = {"accuracy": 0.6, "n": 10, "gain": 0.2, "gain_ci": [0.05, 0.35]}
    cells: dict[str, Record] = {"think": think, "no_think": {"accuracy": 0.4, "n": 10}}
    model = ModelScores(
        model="m", tasks={"sums": cells, "cups": {"think": {**think, "gain": None}}}
    )
    assert model.gain("sums") == Change(value=0.2, low=0.05, high=0.35)
    assert model.gain("cups") is None


def test_metrics_of_one_and_of_several_models_are_read() -> None:
    alone = {"model": "sft", "tasks": {}}
    assert [m.model for m in read_scores(alone, where="metrics.json")] == ["sft"]
    several = {**alone, "all": [{"model": "base", "tasks": {}}, alone]}
    assert [m.model for m in read_scores(several, where="metrics.json")] == ["base", "sft"]


def test_metrics_without_tasks_are_refused_with_their_place() -> None:
    with pytest.raises(
        EvaluationError, match=r"out/test/metrics.json: .*'accuracy', 'model'.*'tasks'"
    ):
        read_scores({"model": "sft", "accuracy": 1.0}, where="out/test/metrics.json")


def test_label_of_a_path_is_its_last_part_and_a_hub_id_stays() -> None:
    labels = ["/runs/demo/sft", "stage:apo", "org/model", "embedded:small"]
    assert [short_label(label) for label in labels] == ["sft", "apo", "org/model", "embedded:small"]
