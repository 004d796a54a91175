"""What a layer asks of attention beside queries, keys and values. N: heads."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """How a layer's scores are made from products of queries and keys."""

    scale: float | None
    """factor of the products; None: 1 / sqrt(size of a head)"""
    window: int | None
    """how many keys up to its own a query sees; None: all"""
    softcap: float | None = None
    """c of c tanh(score / c), as in Gemma 2"""
    sinks: Tensor | None = None
    """the score of a key without a value, for each head [N], as in gpt-oss"""

    @property
    def plain(self) -> bool:
        """Whether the scores are the scaled products themselves."""
        return self.softcap is None and self.sinks is None
