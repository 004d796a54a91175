"""Does a judge say what a verifier says? Told on pairs of a right and a wrong answer."""

from collections.abc import Sequence
from typing import Any

from dualign.judges.base import Comparison, share_of


def agreement(
    comparisons: Sequence[Comparison], verdicts: Sequence[tuple[bool, bool]]
) -> dict[str, Any]:
    """Return the share of the decided comparisons in which the judge prefers the right answer, for run.json.

    Args:
        comparisons: what the judge said.
        verdicts: for each, whether its two answers are right. Those of which exactly one is right count.

    Returns:
        `{n, share, ci, undecided}`: n were decided, with the 95 % interval of the share.
    """
    outcomes = [
        (comparison.better, right)
        for comparison, right in zip(comparisons, verdicts, strict=True)
        if right[0] != right[1]
    ]
    decided = [right[better] for better, right in outcomes if better is not None]
    return {**share_of(sum(decided), len(decided)), "undecided": len(outcomes) - len(decided)}
