"""The difference of two accuracies on the same problems.

Both columns answer the same problems, so what counts is how often exactly one of them is right. The
interval is that of Agresti and Min (2005): Wald's, after adding half an observation to each cell of
the 2 x 2 table.
"""

import math
from collections.abc import Sequence

from dualign.evaluation.scores import Z_95, Change


def paired_change(before: Sequence[bool], after: Sequence[bool]) -> Change:
    """`after` less `before`, problem by problem; (-1, 1) where there is no problem."""
    cells = list(zip(before, after, strict=True))
    if not cells:
        return Change(value=0.0, low=-1.0, high=1.0)
    won = sum(b and not a for a, b in cells)
    lost = sum(a and not b for a, b in cells)
    n = len(cells) + 2
    centre = (won - lost) / n
    spread = Z_95 * math.sqrt((won + lost + 1) / n - centre**2) / math.sqrt(n)
    return Change(
        value=(won - lost) / len(cells),
        low=max(-1.0, centre - spread),
        high=min(1.0, centre + spread),
    )
