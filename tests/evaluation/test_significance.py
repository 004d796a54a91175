"""Tests of differences, against enumeration, closed forms and simulation."""

from itertools import product
from math import comb
from random import Random
from statistics import NormalDist

import pytest

from dualign.evaluation.significance import (
    difference_variance,
    holm,
    independent_variance,
    problems_needed,
    sign_flip_p,
    with_adjusted,
)


def enumerated(differences):
    """The share of all sign patterns whose sum is as far from 0."""
    seen = abs(sum(differences)) - 1e-9
    sums = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in product((-1, 1), repeat=len(differences))
    ]
    return sum(total >= seen for total in sums) / len(sums)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (5, 0), (6, 1), (9, 4), (4, 4)])
def test_of_right_and_wrong_answers_it_is_mcnemars_exact_test(won, lost):
    n, fewer = won + lost, min(won, lost)
    binomial = min(1.0, 2 * sum(comb(n, i) for i in range(fewer + 1)) / 2**n)
    found = sign_flip_p([1.0] * won + [-1.0] * lost + [0.0] * 20)
    assert found == pytest.approx(binomial)


@pytest.mark.parametrize(
    "differences",
    [
        [0.25, 0.5, -0.75, 0.25, 1.0, 0.0, 0.5],
        [1 / 3, 2 / 3, -1 / 3, 1 / 6, 0.5],
        [0.125] * 6,
    ],
)
def test_of_shares_it_is_exact(differences):
    assert sign_flip_p(differences) == pytest.approx(enumerated(differences))


def test_of_other_scores_it_is_near_the_exact_value_and_repeats():
    differences = [0.3141, 0.2718, -0.1414, 0.5772, 0.1618, 0.2236, -0.0693]
    found = sign_flip_p(differences)
    assert found == pytest.approx(enumerated(differences), abs=0.02)
    assert found == sign_flip_p(differences)


def test_it_is_rarely_below_the_level_where_models_are_alike():
    random = Random(3)
    values = [
        sign_flip_p([random.choice((-0.5, 0.0, 0.25, 0.5, -0.25)) for _ in range(20)])
        for _ in range(400)
    ]
    assert sum(p < 0.05 for p in values) / 400 < 0.075


def test_holms_values_by_hand():
    # sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 (raised to 0.06), 0.5 * 1
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_each_comparison_of_two_models_is_a_family():
    rows = [
        {"model": m, "against": "base", "p": p} for m, p in (("a", 0.02), ("b", 0.02), ("b", 1))
    ]
    assert [row["p_adjusted"] for row in with_adjusted(rows)] == pytest.approx([0.02, 0.04, 1.0])


def test_the_needed_problems_show_the_difference_in_four_of_five_evaluations():
    """Simulated: one model is right on 50 %, an independent one on 65 %."""
    n = problems_needed(0.5 * 0.5 + 0.65 * 0.35, points=15)
    random, shown = Random(2), 0
    for _ in range(1000):
        differences = [(random.random() < 0.65) - (random.random() < 0.5) for _ in range(n)]
        mean = sum(differences) / n
        spread = (sum(d * d for d in differences) / n - mean**2) ** 0.5 / n**0.5
        shown += abs(mean) > NormalDist().inv_cdf(0.975) * spread
    assert shown / 1000 == pytest.approx(0.8, abs=0.04)


def test_problems_needed_by_hand():
    # (1.96 + 0.8416)^2 = 7.849; two independent models at 50 %: variance 0.5, over 0.05^2
    assert problems_needed(0.5, points=5) == 1570
    # 100 problems, of which one model alone solves 10: near 0.1 + the added half problems
    assert difference_variance([1.0] * 10 + [0.0] * 90) == pytest.approx(0.098, abs=0.002)
    assert independent_variance([1.0] * 500 + [0.0] * 500) == pytest.approx(0.5, abs=1e-3)
    assert 0 < independent_variance([1.0] * 10) < 0.25  # nothing is sure after ten right answers
