"""Intervals of proportions."""

import math

Z_95 = 1.959963984540054
"""Half the width of a normal 95 % interval, in standard deviations."""


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson 1927); (0, 1) without observations."""
    if n == 0:
        return 0.0, 1.0
    center = share + Z_95**2 / (2 * n)
    spread = Z_95 * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    scale = 1 + Z_95**2 / n
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)
