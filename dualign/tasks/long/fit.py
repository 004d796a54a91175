"""The size at which a text has a chosen number of tokens."""

from collections.abc import Callable
from functools import cache

from dualign.errors import EvaluationError
from dualign.tasks.long.draft import Draft

_CLOSE = 0.985
"""A text of this share of the limit is long enough: the search ends early."""
_AIM = (1 + _CLOSE) / 2
_FIRST_STEP = 8
_SHORTEST_SHARE = 0.97
"""Texts that could be made longer have this share of the limit at least, if one more unit (a line, a
sentence) isn't longer than the rest."""


def fitted(draft: Draft, count: Callable[[str], int], limit: int, name: str) -> tuple[str, int]:
    """Return the longest text of at most `limit` tokens (closer than 1.5 % is enough), and its tokens.

    Args:
        count: tokens of the prompt with a text, all that stands around it included.

    Raises:
        EvaluationError: the smallest text is longer, or the largest is much shorter.
    """

    @cache
    def tokens(size: int) -> int:
        return count(draft.text(size))

    low = draft.smallest
    if tokens(low) > limit:
        raise EvaluationError(
            f"{name}: its shortest problem has {tokens(low)} tokens, and {limit} are left for it (the "
            "length less the room for an answer); choose a greater length"
        )
    low = _search(tokens, low, draft.largest, limit)
    if low == draft.largest and tokens(low) < _SHORTEST_SHARE * limit:
        raise EvaluationError(
            f"{name}: its longest problem has {tokens(low)} tokens, and {limit} were asked for; choose a "
            "smaller length"
        )
    return draft.text(low), tokens(low)


def _search(tokens: Callable[[int], int], low: int, largest: int | None, limit: int) -> int:
    """Return a size of about `limit` tokens; sizes are tried where a straight line through two known
    ones meets it.
    """
    aim, before = _AIM * limit, low
    high: int | None = None  # the smallest size known to be too long
    while tokens(low) < _CLOSE * limit and (high is None or high - low > 1) and low != largest:
        end = before if high is None else high
        slope = (tokens(end) - tokens(low)) / (end - low) if end != low else 0.0
        step = int((aim - tokens(low)) / slope) if slope > 0 else _FIRST_STEP
        size = low + max(1, step)
        if high is not None:
            size = min(size, high - 1)
        elif largest is not None:
            size = min(size, largest)
        if tokens(size) <= limit:
            low, before = size, low
        else:
            high = size
    return low
