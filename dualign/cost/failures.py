"""How often a run on many cards fails, and how often it should save: Young's and Daly's arithmetic."""

from math import sqrt

from dualign.cost.model_shape import ModelShape

# Llama 3 405B: 419 interruptions that nobody planned, in 54 days on 16,384 H100 (arXiv 2407.21783, section 3.3.4).
_CARD_HOURS_TO_FAILURE = 16_384 * 54 * 24 / 419


def hours_to_failure(cards: int) -> float:
    """Return the mean hours between failures of any of the cards, or of what is around them."""
    return _CARD_HOURS_TO_FAILURE / cards


def checkpoint_bytes(shape: ModelShape) -> int:
    """Return the size of a checkpoint of every weight: 2 bytes, float32 master and AdamW's two states."""
    return 14 * shape.parameters


def best_interval(saving_seconds: float, cards: int) -> float:
    """Return the seconds between checkpoints that lose the least: sqrt(2 x saving x time to failure).

    Young, "A first order approximation to the optimum checkpoint interval", 1974; Daly (2006) refines
    it where saving isn't short beside the time to failure.
    """
    return sqrt(2 * saving_seconds * 3600 * hours_to_failure(cards))


def lost_share(
    interval: float, saving_seconds: float, cards: int, *, restart_seconds: float
) -> float:
    """Return the share of the time that goes to saving, to work done again, and to starting again."""
    between = 3600 * hours_to_failure(cards)
    return saving_seconds / interval + (interval / 2 + restart_seconds) / between
