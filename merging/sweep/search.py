"""Searches: each asks for the values of points, and returns a summary at the end.

A search is a generator: it yields a point and is sent that point's value, higher is better. Its
return value goes into sweep.json under `search`. All searches are deterministic for a seed.
"""

import math
from collections.abc import Generator, Sequence
from itertools import product
from typing import Any

from dualign.errors import MergeError
from dualign.merging.sweep.config import Range, SweepStage
from dualign.merging.sweep.points import SOUP, Point

SearchSummary = dict[str, Any]
Search = Generator[Point, float, SearchSummary]

_GOLDEN = (math.sqrt(5) - 1) / 2
_INITIAL_SPREAD = 0.3  # of CMA-ES, as a share of each range
UNUSABLE = -math.inf
"""the value of a candidate that can't be merged"""


def start_search(stage: SweepStage, *, seed: int) -> Search:
    """Return the search that the stage names."""
    match stage.search:
        case "grid":
            return grid(stage)
        case "golden":
            ((name, range_),) = stage.vary.items()
            assert isinstance(range_, Range), "checked when the recipe was read"
            return golden(name, range_, tolerance=stage.tolerance, budget=stage.budget)
        case "cma":
            ranges = {name: part for name, part in stage.vary.items() if isinstance(part, Range)}
            assert stage.budget is not None, "checked when the recipe was read"
            return cma(ranges, budget=stage.budget, seed=seed)
        case "greedy_soup":
            return greedy_soup(len(stage.models))


def max_evaluations(stage: SweepStage) -> int:
    """Return the number of candidates, or an upper bound of it."""
    match stage.search:
        case "grid":
            return math.prod(len(values) for values in _values(stage))
        case "golden":
            steps = 2 + math.ceil(math.log(stage.tolerance) / math.log(_GOLDEN))
            return min(steps, stage.budget or steps)
        case "cma":
            return stage.budget or 0
        case "greedy_soup":
            return 2 * len(stage.models) - 1


def grid_points(stage: SweepStage) -> list[Point]:
    """Return the points of a grid; the last name varies fastest."""
    return [dict(zip(stage.vary, values, strict=True)) for values in product(*_values(stage))]


def _values(stage: SweepStage) -> list[tuple[Any, ...]]:
    return [
        values.values() if isinstance(values, Range) else values for values in stage.vary.values()
    ]


def grid(stage: SweepStage) -> Search:
    """Every combination of the values."""
    for point in grid_points(stage):  # noqa: UP028 - a list can't be sent the values
        yield point
    return {}


def golden(name: str, range_: Range, *, tolerance: float, budget: int | None) -> Search:
    """Golden section search (Kiefer 1953) for the peak of a function that has one peak.

    The interval shrinks by 0.618 with each candidate, until it is `tolerance` of the range. On
    equal values the part with the higher end of the range stays.
    """
    low, high = 0.0, 1.0
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    left_value = yield {name: range_.value_at(left)}
    right_value = yield {name: range_.value_at(right)}
    evaluations = 2
    while high - low > tolerance and (budget is None or evaluations < budget):
        if left_value > right_value:
            high, right, right_value = right, left, left_value
            left = high - _GOLDEN * (high - low)
            left_value = yield {name: range_.value_at(left)}
        else:
            low, left, left_value = left, right, right_value
            right = low + _GOLDEN * (high - low)
            right_value = yield {name: range_.value_at(right)}
        evaluations += 1
    if left_value > right_value:
        high = right
    else:
        low = left
    interval = [range_.value_at(low), range_.value_at(high)]
    return {"interval": interval, "evaluations": evaluations}


def greedy_soup(count: int) -> Search:
    """Greedy soup (Wortsman et al. 2022, arXiv 2203.05482, Recipe 1) of `count` models.

    Each model is scored alone; then, from the best down, each joins the average unless the score
    falls.
    """
    alone = []
    for model in range(count):
        alone.append((yield {SOUP: (model,)}))
    order = sorted(range(count), key=lambda model: -alone[model])
    soup: tuple[int, ...] = (order[0],)
    best = alone[order[0]]
    for model in order[1:]:
        if alone[model] == UNUSABLE:
            continue
        larger = tuple(sorted((*soup, model)))
        value = yield {SOUP: larger}
        if value >= best:
            soup, best = larger, value
    return {"order": order, "soup": list(soup)}


def cma(ranges: dict[str, Range], *, budget: int, seed: int) -> Search:
    """CMA-ES (Hansen 2016, arXiv 1604.00772) by the package cmaes, each range scaled to [0, 1].

    Starts in the middle with a spread of 0.3 of each range. An incomplete last generation can win
    but does not update the search.
    """
    optimizer = _optimizer(len(ranges), seed)
    generations, remaining = 0, budget
    while remaining > 0:
        positions = [optimizer.ask() for _ in range(min(optimizer.population_size, remaining))]
        losses = []
        for position in positions:
            value = yield _point(ranges, position)
            losses.append((position, -value))
        remaining -= len(positions)
        if len(losses) == optimizer.population_size:
            optimizer.tell(_finite(losses))
            generations += 1
            if optimizer.should_stop():
                break
    mean = [min(max(float(share), 0.0), 1.0) for share in optimizer.mean]
    return {"generations": generations, "mean": _point(ranges, mean)}


def _point(ranges: dict[str, Range], position: Sequence[float]) -> dict[str, float]:
    shares = zip(ranges.items(), position, strict=True)
    return {name: range_.value_at(float(share)) for (name, range_), share in shares}


def _finite(losses: Sequence[tuple[Any, float]]) -> list[tuple[Any, float]]:
    """Count candidates that can't be merged as worse than the worst of the others."""
    worst = max((loss for _, loss in losses if math.isfinite(loss)), default=0.0) + 1.0
    return [(position, loss if math.isfinite(loss) else worst) for position, loss in losses]


def _optimizer(count: int, seed: int) -> Any:
    import numpy as np

    try:
        from cmaes import CMA
    except ImportError:
        raise MergeError(
            "search: cma needs the package cmaes: pip install 'dualign[sweep]' (or cmaes)"
        ) from None
    bounds = np.tile([0.0, 1.0], (count, 1))
    return CMA(mean=np.full(count, 0.5), sigma=_INITIAL_SPREAD, bounds=bounds, seed=seed)
