"""Intervals of proportions."""

import math
from collections.abc import Sequence
from statistics import fmean, variance

Z_95 = 1.959963984540054
"""Half the width of a normal 95 % interval, in standard deviations."""


def wilson(share: float, n: float) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson 1927); (0, 1) without observations."""
    if n == 0:
        return 0.0, 1.0
    center = share + Z_95**2 / (2 * n)
    spread = Z_95 * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    scale = 1 + Z_95**2 / n
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


def share_interval(values: Sequence[float], answers: int | None = None) -> tuple[float, float]:
    """Return the 95 % interval of the mean of values between 0 and 1, one for each problem.

    Where all are 0 or 1 it is Wilson's. Else, for shares of several answers and graded scores, it
    is Wilson's at the effective number of problems p (1 - p) / (s^2 / n), with Student's t in place
    of the normal quantile (Korn and Graubard 1998; of intervals for clusters the one that Dean and
    Pagano 2015 recommend for small samples). Values without any spread count as 0 or 1.

    Args:
        answers: the number of right or wrong answers behind the values, the most that they can
            count for; None for graded scores.
    """
    n = len(values)
    mean = fmean(values) if values else 0.0
    if n < 2 or all(value in (0, 1) for value in values):
        return wilson(mean, n)
    squared_error = variance(values) / n
    most = math.inf if answers is None else answers
    effective = min(mean * (1 - mean) / squared_error, most) if squared_error else answers or n
    return wilson(mean, effective * (Z_95 / t_95(n - 1)) ** 2)


def t_95(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t, to 0.2 % (Abramowitz and Stegun 26.7.5)."""
    if degrees == 1:
        return math.tan(0.475 * math.pi)
    if degrees == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z = Z_95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, 1))
