"""The searches on functions whose peaks are known."""

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from dualign.errors import MergeError
from dualign.merging.sweep import search
from dualign.merging.sweep.config import Range, SweepStage
from dualign.merging.sweep.search import UNUSABLE, Search, cma, golden, greedy_soup, grid

UNIT = Range(low=0.0, high=1.0)


def drive(steps: Search, value: Callable[[Any], float]) -> tuple[list[Any], dict[str, Any]]:
    asked = []
    try:
        point = next(steps)
        while True:
            asked.append(point)
            point = steps.send(value(point))
    except StopIteration as end:
        return asked, end.value


def sweep_of(**vary: Any) -> SweepStage:
    return SweepStage(name="s", merge={}, vary=vary)


def test_a_grid_is_every_combination_the_last_name_the_fastest() -> None:
    stage = sweep_of(a=(1, 2), b=Range(low=0.0, high=1.0, points=2))
    asked, _ = drive(grid(stage), lambda _: 0.0)
    pairs = [(point["a"], point["b"]) for point in asked]
    assert pairs == [(1, 0.0), (1, 1.0), (2, 0.0), (2, 1.0)]
    assert search.max_evaluations(stage) == 4


@pytest.mark.parametrize("peak", [0.0, 0.137, 0.5, 0.93, 1.0])
def test_golden_section_brackets_the_peak_of_a_function_with_one(peak: float) -> None:
    steps = golden("a", UNIT, tolerance=0.01, budget=None)
    asked, found = drive(steps, lambda point: -abs(point["a"] - peak))
    low, high = found["interval"]
    assert low - 1e-9 <= peak <= high + 1e-9
    assert high - low <= 0.01
    assert len(asked) == found["evaluations"] <= 12, "0.618^10 is 0.008"
    whole = SweepStage(name="s", merge={}, vary={"a": UNIT}, search="golden", tolerance=0.01)
    assert len(asked) <= search.max_evaluations(whole)


def test_golden_section_stops_at_its_budget_and_says_how_far_it_came() -> None:
    asked, found = drive(
        golden("a", Range(low=2.0, high=4.0), tolerance=1e-6, budget=3), lambda p: p["a"]
    )
    assert len(asked) == 3
    assert found["interval"] == pytest.approx([4 - 2 * 0.618034**2, 4.0], abs=1e-5)


def test_greedy_soup_keeps_what_does_not_hurt() -> None:
    # Alone: 0.5, 0.7, 0.6, 0.1. With the best, 1: adding 2 helps, adding 0 hurts, adding 3 changes nothing.
    values = {(0,): 0.5, (1,): 0.7, (2,): 0.6, (3,): 0.1}
    values |= {(1, 2): 0.8, (0, 1, 2): 0.79, (1, 2, 3): 0.8}
    asked, found = drive(greedy_soup(4), lambda point: values[point["soup"]])
    assert [point["soup"] for point in asked[4:]] == [(1, 2), (0, 1, 2), (1, 2, 3)]
    assert found == {"order": [1, 2, 0, 3], "soup": [1, 2, 3]}


def test_a_model_that_cannot_be_merged_is_not_tried_in_the_soup() -> None:
    values = {(0,): 0.5, (1,): UNUSABLE}
    asked, found = drive(greedy_soup(2), lambda point: values[point["soup"]])
    assert len(asked) == 2
    assert found["soup"] == [0]


def hill(point: dict[str, float]) -> float:
    return -((point["a"] - 0.8) ** 2) - (point["b"] - 30) ** 2 / 1e4


def test_cma_finds_the_top_of_a_hill_within_its_ranges_and_again_from_the_same_seed() -> None:
    ranges = {"a": UNIT, "b": Range(low=0.0, high=100.0)}
    asked, found = drive(cma(ranges, budget=100, seed=1), hill)
    best = max(asked, key=hill)
    assert best["a"] == pytest.approx(0.8, abs=0.02)
    assert best["b"] == pytest.approx(30, abs=2)
    assert found["mean"]["a"] == pytest.approx(0.8, abs=0.05)
    assert all(0 <= point["a"] <= 1 and 0 <= point["b"] <= 100 for point in asked)
    again, _ = drive(cma(ranges, budget=100, seed=1), hill)
    other, _ = drive(cma(ranges, budget=100, seed=2), hill)
    assert json.dumps(again) == json.dumps(asked) != json.dumps(other)


def test_cma_keeps_to_its_budget_and_bears_candidates_that_cannot_be_merged() -> None:
    def value(point: dict[str, float]) -> float:
        return UNUSABLE if point["a"] > 0.5 else point["a"]

    asked, _ = drive(cma({"a": UNIT}, budget=7, seed=0), value)
    assert len(asked) == 7


def test_cma_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(MergeError, match=r"pip install 'dualign\[sweep\]'"):
        next(cma({"a": UNIT}, budget=7, seed=0))
