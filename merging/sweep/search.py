"""The searches: each asks for points, gets their values, and says at the end what it has found.

A search is a generator: it yields a point and is sent that point's value, where higher is better. What it returns goes
into sweep.json under `search`. All of them are deterministic for a seed.
"""

import math
from collections.abc import Generator, Sequence
from itertools import product
from typing import Any

from dualign.errors import MergeError
from dualign.merging.sweep.config import Range, SweepStage
from dualign.merging.sweep.points import SOUP, Point

Found = dict[str, Any]
Search = Generator[Point, float, Found]

GOLDEN = (math.sqrt(5) - 1) / 2
FIRST_SPREAD = 0.3  # of CMA-ES, as a share of each range
UNUSABLE = -math.inf
"""the value of a candidate that can't be merged"""


def start(stage: SweepStage, *, seed: int) -> Search:
    """The search that the stage names."""
    match stage.search:
        case "grid":
            return grid(stage)
        case "golden":
            ((name, one),) = stage.vary.items()
            assert isinstance(one, Range), "checked when the recipe was read"
            return golden(name, one, tolerance=stage.tolerance, budget=stage.budget)
        case "cma":
            ranges = {name: one for name, one in stage.vary.items() if isinstance(one, Range)}
            assert stage.budget is not None, "checked when the recipe was read"
            return cma(ranges, budget=stage.budget, seed=seed)
        case "greedy_soup":
            return greedy_soup(len(stage.models))


def most(stage: SweepStage) -> int:
    """The number of candidates, or an upper bound of it."""
    match stage.search:
        case "grid":
            return math.prod(len(values) for values in _values(stage))
        case "golden":
            steps = 2 + math.ceil(math.log(stage.tolerance) / math.log(GOLDEN))
            return min(steps, stage.budget or steps)
        case "cma":
            return stage.budget or 0
        case "greedy_soup":
            return 2 * len(stage.models) - 1


def points(stage: SweepStage) -> list[Point]:
    """Those of a grid, the last name the fastest."""
    return [dict(zip(stage.vary, one, strict=True)) for one in product(*_values(stage))]


def _values(stage: SweepStage) -> list[tuple[Any, ...]]:
    return [one.values() if isinstance(one, Range) else one for one in stage.vary.values()]


def grid(stage: SweepStage) -> Search:
    """Every combination of the values."""
    for point in points(stage):  # noqa: UP028 - a list can't be sent the values
        yield point
    return {}


def golden(name: str, one: Range, *, tolerance: float, budget: int | None) -> Search:
    """Golden section search (Kiefer 1953) for the peak of a function that has one peak.

    The interval shrinks by 0.618 with each candidate, until it is `tolerance` of the range. On equal values the part
    with the higher end of the range stays.
    """
    low, high = 0.0, 1.0
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left = yield {name: one.at(left)}
    at_right = yield {name: one.at(right)}
    asked = 2
    while high - low > tolerance and (budget is None or asked < budget):
        if at_left > at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = yield {name: one.at(left)}
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = yield {name: one.at(right)}
        asked += 1
    if at_left > at_right:
        high = right
    else:
        low = left
    return {"interval": [one.at(low), one.at(high)], "evaluations": asked}


def greedy_soup(count: int) -> Search:
    """Greedy soup (Wortsman et al. 2022, arXiv 2203.05482, Recipe 1) of `count` models.

    Each model is scored alone; then, from the best down, each joins the average if the score doesn't fall.
    """
    alone = []
    for place in range(count):
        alone.append((yield {SOUP: (place,)}))
    order = sorted(range(count), key=lambda place: -alone[place])
    soup: tuple[int, ...] = (order[0],)
    best = alone[order[0]]
    for place in order[1:]:
        if alone[place] == UNUSABLE:
            continue
        larger = tuple(sorted((*soup, place)))
        value = yield {SOUP: larger}
        if value >= best:
            soup, best = larger, value
    return {"order": order, "soup": list(soup)}


def cma(ranges: dict[str, Range], *, budget: int, seed: int) -> Search:
    """CMA-ES (Hansen 2016, arXiv 1604.00772) by the package cmaes, each range scaled to [0, 1].

    Starts in the middle with a spread of 0.3 of each range. What a last, incomplete generation brought counts for the
    result, though not for the search.
    """
    optimizer = _optimizer(len(ranges), seed)
    generations, left = 0, budget
    while left > 0:
        asked = [optimizer.ask() for _ in range(min(optimizer.population_size, left))]
        told = []
        for place in asked:
            numbers = [one.at(float(x)) for one, x in zip(ranges.values(), place, strict=True)]
            value = yield dict(zip(ranges, numbers, strict=True))
            told.append((place, -value))
        left -= len(asked)
        if len(told) == optimizer.population_size:
            optimizer.tell(_finite(told))
            generations += 1
            if optimizer.should_stop():
                break
    mean = [
        one.at(min(max(float(x), 0.0), 1.0))
        for one, x in zip(ranges.values(), optimizer.mean, strict=True)
    ]
    return {"generations": generations, "mean": dict(zip(ranges, mean, strict=True))}


def _finite(told: Sequence[tuple[Any, float]]) -> list[tuple[Any, float]]:
    """Candidates that can't be merged count as worse than the worst of the others."""
    known = [value for _, value in told if math.isfinite(value)]
    worst = max(known, default=0.0) + 1.0
    return [(place, value if math.isfinite(value) else worst) for place, value in told]


def _optimizer(count: int, seed: int) -> Any:
    import numpy as np

    try:
        from cmaes import CMA
    except ImportError:
        raise MergeError(
            "search: cma needs the package cmaes: pip install 'dualign[sweep]' (or cmaes)"
        ) from None
    bounds = np.tile([0.0, 1.0], (count, 1))
    return CMA(mean=np.full(count, 0.5), sigma=FIRST_SPREAD, bounds=bounds, seed=seed)
