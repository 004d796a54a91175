"""Scores, ties, the front, and whether two candidates can be told apart: worked by hand."""

import math
from collections.abc import Sequence

import pytest

from dualign.evaluation.scores import Change, paired_change
from dualign.intervals import wilson
from dualign.merging.sweep.candidates import (
    Candidate,
    CandidateScore,
    compare,
    mean_of,
    objective_of,
    pareto_front,
    score_samples,
    winner,
)


def samples(
    think: Sequence[int], no_think: Sequence[int], *, task: str = "t", leaked: bool = False
) -> list[dict[str, object]]:
    return [
        {
            "task": task, "mode": mode, "id": str(place), "correct": bool(right),
            "leaked": leaked and mode == "no_think", "closed": mode == "think",
            "empty_think": False, "cut_in_think": False, "finished": True,
            "think_tokens": 1, "answer_tokens": 1,
        }
        for mode, all_right in (("think", think), ("no_think", no_think))
        for place, right in enumerate(all_right)
    ]  # fmt: skip


def candidate(scored: CandidateScore | None, **point: object) -> Candidate:
    return Candidate(point=point, key="", score=scored)


@pytest.mark.parametrize(
    ("objective", "value"), [("mean", 0.5), ("think", 0.75), ("no_think", 0.25), ("min", 0.25)]
)
def test_the_objective_is_of_the_modes(objective: str, value: float) -> None:
    scored = score_samples(samples([1, 1, 1, 0], [1, 0, 0, 0]), objective)  # type: ignore[arg-type]
    assert scored.value == value
    assert scored.right["t"]["think"] == (True, True, True, False)


def test_each_task_counts_alike_whatever_its_length() -> None:
    both = samples([1, 1], [0, 0]) + samples([0] * 8, [0] * 8, task="long")
    scored = score_samples(both, "think")
    assert scored.value == 0.5


def test_the_interval_of_one_task_is_wilsons_and_of_two_that_of_their_mean() -> None:
    scored = score_samples(samples([1, 1, 1, 0], [0] * 4), "think")
    found = objective_of(scored, "think")
    assert (found.low, found.high) == pytest.approx(wilson(0.75, 4))
    mean = mean_of([Change(value=0.6, low=0.3, high=0.7), Change(value=0.4, low=0.0, high=0.4)])
    assert mean.value == 0.5
    assert mean.low == pytest.approx(0.5 - math.hypot(0.3, 0.4) / 2)
    assert mean.high == pytest.approx(0.55)


def test_two_candidates_are_compared_problem_by_problem() -> None:
    first = score_samples(samples([1] * 20, [0] * 20), "think")
    second = score_samples(samples([1] * 10 + [0] * 10, [0] * 20), "think")
    found = compare(first, second, "think")
    expected = paired_change([True] * 10 + [False] * 10, [True] * 20)
    assert (found.value, found.low, found.high) == (expected.value, expected.low, expected.high)
    assert found.measurable
    assert not compare(first, first, "mean").measurable


def test_the_lower_mode_is_compared_with_the_lower_mode() -> None:
    high_think = score_samples(samples([1] * 9 + [0], [1] * 5 + [0] * 5), "min")
    low_think = score_samples(samples([1] * 4 + [0] * 6, [1] * 10), "min")
    found = compare(high_think, low_think, "min")
    assert found.value == pytest.approx(0.1)
    assert not found.measurable


def test_ties_go_to_the_better_weak_mode_then_to_fewer_leaks_then_to_the_first() -> None:
    lopsided = score_samples(samples([1, 1], [0, 0]), "mean")
    even = score_samples(samples([1, 0], [1, 0]), "mean")
    leaking = score_samples(samples([1, 0], [1, 0], leaked=True), "mean")
    assert winner([candidate(lopsided), candidate(even)]) == 1
    assert winner([candidate(leaking), candidate(even), candidate(even)]) == 1
    assert winner([candidate(None), candidate(None)]) is None
    numbers = [candidate(CandidateScore(value=value)) for value in (2.0, 1.0, 3.0)]
    assert (winner(numbers), winner(numbers, lowest=True)) == (2, 1)


def test_the_front_is_what_no_other_beats() -> None:
    grid = [([1, 1], [0, 0]), ([1, 0], [1, 0]), ([0, 0], [1, 1]), ([1, 0], [0, 0])]
    tried = [candidate(score_samples(samples(*point), "mean")) for point in grid]
    assert pareto_front([*tried, candidate(None)]) == {0, 1, 2}
