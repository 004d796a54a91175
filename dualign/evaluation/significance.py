"""Whether two models differ: tests on the same problems, many at once, and how many would be needed.

A difference is that of one problem: its value under one model less its value under the other, each
the mean of the problem's answers.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from dualign.intervals import Z_95

LEVEL = 0.05
"""an adjusted p below this is marked in tables"""
_POINTS = 5
"""of the difference whose number of problems is reckoned"""
_POWER = 0.8
_LARGEST_SCALE = 128
_EXACT_STEPS = 50_000_000  # of the exact distribution: tenths of a second
_DRAWS = 9999


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the two-sided p of "both models are equally good", by flipping signs of differences.

    For right and wrong answers it is McNemar's exact test. Shares of several answers are whole
    multiples of some fraction, so the distribution of their sum is exact too; other scores take
    9,999 seeded draws, counted with the one that was seen (Phipson and Smyth 2010).
    """
    present = np.array([d for d in differences if abs(d) > 1e-12])
    if len(present) == 0:
        return 1.0
    steps = _whole(present)
    if steps is not None and len(steps) * int(steps.sum()) <= _EXACT_STEPS:
        observed = abs(int(np.rint(steps * np.sign(present)).sum()))
        return _exact_p(steps, observed)
    return _drawn_p(present)


def _whole(differences: np.ndarray) -> np.ndarray | None:
    """Return the sizes of the differences as whole numbers of a common fraction; None without one."""
    sizes = np.abs(differences)
    for scale in range(1, _LARGEST_SCALE + 1):
        steps = np.rint(sizes * scale)
        if np.all(np.abs(sizes * scale - steps) < 1e-7):
            whole: np.ndarray = steps.astype(np.int64)
            return whole
    return None


def _exact_p(steps: np.ndarray, observed: int) -> float:
    """Return the chance that the sum of `steps` with random signs is as far from 0 as `observed`."""
    total = int(steps.sum())
    chances = np.zeros(2 * total + 1)
    chances[total] = 1.0
    for step in steps:
        moved = np.zeros_like(chances)
        moved[step:] += 0.5 * chances[:-step]
        moved[:-step] += 0.5 * chances[step:]
        chances = moved
    sums = np.abs(np.arange(-total, total + 1))
    return min(1.0, float(chances[sums >= observed].sum()))


def _drawn_p(differences: np.ndarray) -> float:
    generator = np.random.default_rng(0)
    observed = abs(float(differences.sum())) - 1e-9
    as_far, left = 0, _DRAWS
    while left:
        count = min(left, 256)
        signs = generator.integers(0, 2, (count, len(differences)), dtype=np.int8) * 2.0 - 1.0
        as_far += int((np.abs(signs @ differences) >= observed).sum())
        left -= count
    return (as_far + 1) / (_DRAWS + 1)


def holm(values: Sequence[float]) -> list[float]:
    """Return the p values of several tests, adjusted for their number (Holm 1979)."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    adjusted, least = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = least
    return adjusted


def with_adjusted(changes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the changes with `p_adjusted`, for all tasks and modes of one model against another."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, change in enumerate(changes):
        groups.setdefault((change["model"], change["against"]), []).append(index)
    adjusted = {
        index: p
        for indices in groups.values()
        for index, p in zip(indices, holm([changes[i]["p"] for i in indices]), strict=True)
    }
    return [dict(change) | {"p_adjusted": adjusted[i]} for i, change in enumerate(changes)]


def problems_needed(variance: float, points: float = _POINTS) -> int:
    """Return how many problems show a difference of `points` in four of five evaluations.

    (z_0.975 + z_0.8)^2 variance / difference^2, with the variance of the differences of single
    problems (Miller 2024, arXiv 2411.00640, eq. 9).
    """
    reach = Z_95 + NormalDist().inv_cdf(_POWER)
    return math.ceil(reach**2 * variance / (points / 100) ** 2)


def difference_variance(differences: Sequence[float]) -> float:
    """Return the variance of paired differences, with Agresti and Min's two added problems."""
    n = len(differences) + 2
    center = sum(differences) / n
    return (sum(d * d for d in differences) + 1) / n - center**2


def independent_variance(values: Sequence[float]) -> float:
    """Return the variance of differences from another model like this one, independent of it.

    That is twice the variance of the problems' values, with Agresti and Coull's two right and two
    wrong ones added. Real models find the same problems hard, so they differ by less.
    """
    n = len(values) + 4
    mean = (sum(values) + 2) / n
    return 2 * ((sum(v * v for v in values) + 2) / n - mean**2)


_NAMED_TASKS = 8  # in a sentence; metrics.json has all


def needed_note(
    tasks: Mapping[str, Mapping[str, Mapping[str, Any]]], changes: Iterable[Mapping[str, Any]]
) -> str:
    """Say how many problems of each task would show a small difference; "" if that isn't recorded.

    Where models were compared it is by their own differences, else by what two models that have
    nothing to do with each other would differ.

    Args:
        tasks: of one model in metrics.json.
        changes: those of metrics.json.
    """
    needed: dict[str, int] = {}
    counts: dict[str, int] = {}
    for task, by_mode in tasks.items():
        for cell in by_mode.values():
            if cell.get("problems_needed") and cell["n"]:
                needed[task] = max(needed.get(task, 0), cell["problems_needed"])
                counts[task] = cell["n"]
    compared: dict[str, int] = {}
    for change in changes:
        task = change["task"]
        if task in needed and change.get("problems_needed"):
            compared[task] = max(compared.get(task, 0), change["problems_needed"])
    needed |= compared
    if not needed:
        return ""
    parts = [
        f"{task} {_rounded(count)} problems (this set has {counts[task]:,})"
        for task, count in needed.items()
    ]
    if len(parts) > _NAMED_TASKS:
        others = f"{len(parts) - _NAMED_TASKS} other tasks as metrics.json has it"
        parts = [*parts[:_NAMED_TASKS], others]
    between = "" if compared else " between two unrelated models"
    return f"A difference of {_POINTS} points{between} would need about: {', '.join(parts)}."


def _rounded(count: int) -> str:
    """Return a count to two digits: 1,570 is 1,600."""
    digits = max(0, len(str(count)) - 2)
    return f"{round(count, -digits):,}"
