"""Figures worked by hand."""

import re

import pytest

from dualign.evaluation.config import EvalStage
from dualign.evaluation.metrics import percentiles, summarize, thinking_change, with_gain
from dualign.evaluation.scores import paired_change


def sample(id_, *, correct, think_tokens=10, **flags):
    plain = {"leaked": False, "closed": True, "empty_think": False, "cut_in_think": False}
    return {
        "id": id_,
        "correct": correct,
        "finished": True,
        "think_tokens": think_tokens,
        "answer_tokens": 2,
        **plain,
        **flags,
    }


def test_accuracy_comes_with_wilsons_interval():
    """8 of 10 by hand: z^2 = 3.8415, centre (8 + 1.9207) / 13.8415 = 0.71674,
    spread 1.96 / 13.8415 * sqrt(8 * 2 / 10 + 3.8415 / 4) = 0.14160 * 1.60004 = 0.22657."""
    found = summarize([sample(i, correct=i < 8) for i in range(10)], "think")
    assert found["accuracy"] == 0.8
    assert found["accuracy_ci"] == pytest.approx([0.49017, 0.94331], abs=1e-4)
    assert (found["n"], found["correct"]) == (10, 8)


def test_think_rates_count_flags():
    samples = [
        sample(0, correct=True),
        sample(1, correct=False, closed=False, cut_in_think=True, finished=False),
        sample(2, correct=True, empty_think=True),
        sample(3, correct=True, leaked=True),
    ]
    found = summarize(samples, "think")
    rates = ("closed_rate", "cut_in_think_rate", "empty_think_rate", "leak_rate", "unfinished_rate")
    assert [found[name] for name in rates] == [0.75, 0.25, 0.25, 0.25, 0.25]


def test_reasons_of_wrong_answers_are_counted():
    reasons = ["", "timeout", "no code", "timeout", None]
    samples = [sample(i, correct=not reason, reason=reason) for i, reason in enumerate(reasons)]
    found = summarize([*samples, sample(9, correct=False)], "think")["reasons"]
    assert list(found.items()) == [("timeout", 2), ("no code", 1)]


def test_no_think_has_no_block_to_close():
    found = summarize([sample(0, correct=True, leaked=True), sample(1, correct=True)], "no_think")
    assert found["leak_rate"] == 0.5
    assert found["closed_rate"] is found["empty_think_rate"] is found["cut_in_think_rate"] is None


def test_percentiles_interpolate():
    assert percentiles([1, 2, 3, 4]) == {"p50": 2.5, "p90": 3.7, "p99": 3.97, "mean": 2.5}
    assert percentiles([7]) == {"p50": 7.0, "p90": 7.0, "p99": 7.0, "mean": 7.0}
    assert percentiles([])["p50"] == 0.0


def test_a_paired_change_by_hand():
    """8 problems: 4 won, none lost. Adjusted: centre 4 / 10 = 0.4, variance (5 / 10 - 0.16) / 10 = 0.034,
    spread 1.96 * 0.18439 = 0.36140."""
    before = [False] * 4 + [True] * 4
    found = paired_change(before, [True] * 8)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.0386, 0.7614), abs=1e-4)
    assert found.measurable


def test_a_paired_change_of_equal_answers_is_zero():
    found = paired_change([True, False], [True, False])
    assert found.value == 0.0
    assert found.low == -found.high
    assert not found.measurable
    assert (paired_change([], []).low, paired_change([], []).high) == (-1.0, 1.0)


def test_the_gain_pairs_problems_by_id_whatever_their_order():
    think = [sample(i, correct=i in (0, 1)) for i in (0, 1, 2)]
    no_think = [sample(i, correct=i == 2) for i in (2, 0, 1)]
    found = with_gain({"t": {"think": think, "no_think": no_think}})
    assert found["t"]["think"]["gain"] == pytest.approx(1 / 3)
    assert "gain" not in found["t"]["no_think"]


def test_lengths_are_paired_by_id_whatever_their_order():
    before = [sample(i, correct=True, think_tokens=tokens) for i, tokens in ((0, 40), (1, 20))]
    after = [sample(i, correct=True, think_tokens=tokens) for i, tokens in ((1, 10), (0, 20))]
    found = thinking_change(before, after)
    assert (found.value, found.low, found.high) == pytest.approx((-0.5, -0.5, -0.5))


def test_a_stage_that_cant_be_right_is_refused_key_by_key():
    stage = EvalStage(name="e", models=(), tasks=("t",), rows=0, temperature=-1, top_p=0.0)
    assert {key for key, _ in stage.problems()} == {"models", "rows", "temperature", "top_p"}
    greedy = EvalStage(name="e", models=("a", "a"), tasks=("t",), top_p=0.9)
    assert [key for key, _ in greedy.problems()] == ["models", "top_p"]


@pytest.mark.parametrize(
    ("keys", "refused"),
    [
        ({"samples": 4}, {"samples": "think is greedy, so its 4 answers"}),
        (
            {"samples": 4, "temperature": 0.6, "temperature_no_think": 0.0},
            {
                "samples": "no_think is greedy, so its 4 .* set temperature_no_think above 0, or samp"
            },
        ),
        ({"samples_no_think": 2}, {"samples_no_think": "no_think is greedy"}),
        (
            {"samples": 0, "temperature": 0.6, "top_k": 0},
            {"samples": "expected 1 or more", "top_k": "expected 1 or more"},
        ),
        ({"top_k": 20}, {"top_k": "no effect at temperature 0"}),
        ({"top_p_no_think": 0.9}, {"top_p_no_think": "set temperature or remove top_p_no_think"}),
        ({"temperature_no_think": -1.0}, {"temperature_no_think": "expected 0 or more"}),
        ({"samples": 4, "temperature": 0.6}, {}),
        (
            {"samples": 4, "temperature": 0.6, "temperature_no_think": 0.0, "samples_no_think": 1},
            {},
        ),
        ({"top_p": 0.8, "top_k": 20, "temperature_no_think": 0.7}, {}),
    ],
)
def test_equal_answers_and_idle_settings_are_refused_by_mode(keys, refused):
    stage = EvalStage(name="e", models=("a",), tasks=("t",), **keys)
    found = dict(stage.problems())
    assert found.keys() == refused.keys()
    for key, message in refused.items():
        assert re.search(message, found[key])
