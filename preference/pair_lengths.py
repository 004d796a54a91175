"""Lengths of chosen and rejected answers, and how far length alone tells them apart.

The matched-pairs rank-biserial correlation: pairs are ranked by the size of their difference in
tokens; it is (sum of the ranks where chosen is longer - sum of those where rejected is) / sum of all.
1: chosen is always longer; 0: length says nothing; -1: rejected is always longer.
(Kerby 2014, The simple difference formula; pairs without a difference count as ranks on neither side.)
"""

from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from rich.table import Table

from dualign.generation.answers import Responder
from dualign.generation.responders import CheckpointResponder

_STRONG = 0.3
"""Above this size, preference training learns length before it learns anything else."""
_SIGNIFICANT = 1.96
_CHARACTERS_PER_TOKEN = 4


class TokenCounter:
    """Counts all answers of a stage in one way: by the first checkpoint's tokenizer, else by characters.

    Two models' own tokens can't be compared.
    """

    def __init__(self) -> None:
        self.unit = f"tokens of {_CHARACTERS_PER_TOKEN} characters"
        self._tokenizer: Any = None

    def learn(self, responder: Responder) -> None:
        """Take the tokenizer of the first checkpoint that answers."""
        if self._tokenizer is None and isinstance(responder, CheckpointResponder):
            self._tokenizer = responder.subject.tokenizer
            self.unit = f"tokens of {Path(responder.model).name}"

    def count_all(self, texts: Iterable[str | None]) -> int:
        """Return the tokens of several texts together."""
        return sum(self._count(text) for text in texts if text)

    def _count(self, text: str) -> int:
        if self._tokenizer is None:
            return -(-len(text) // _CHARACTERS_PER_TOKEN)
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def length_figures(pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return the figures of pairs, each the tokens of (chosen, rejected); `warning` if length tells them apart.

    Args:
        pairs: one or more.
    """
    count = len(pairs)
    correlation = rank_biserial([chosen - rejected for chosen, rejected in pairs])
    figures: dict[str, Any] = {
        "pairs": count,
        "chosen": round(sum(chosen for chosen, _ in pairs) / count, 1),
        "rejected": round(sum(rejected for _, rejected in pairs) / count, 1),
        "chosen_longer": round(sum(c > r for c, r in pairs) / count, 3),
        "correlation": round(correlation, 3),
    }
    # The standard deviation of the correlation where length says nothing, from Wilcoxon's signed ranks.
    chance = _SIGNIFICANT * sqrt(2 * (2 * count + 1) / (3 * count * (count + 1)))
    if abs(correlation) > max(_STRONG, chance):
        figures["warning"] = _warning(correlation)
    return figures


def rank_biserial(differences: Sequence[int]) -> float:
    """Return the matched-pairs rank-biserial correlation of differences; 0 if all are 0."""
    ordered = sorted(differences, key=abs)
    total = balance = 0.0
    start = 0
    while start < len(ordered):
        end = start
        while end < len(ordered) and abs(ordered[end]) == abs(ordered[start]):
            end += 1
        rank = (start + 1 + end) / 2  # those of one size share their mean rank
        for difference in ordered[start:end]:
            total += rank
            balance += rank * ((difference > 0) - (difference < 0))
        start = end
    return balance / total if total else 0.0


def _warning(correlation: float) -> str:
    side, learns = ("chosen", "longer") if correlation > 0 else ("rejected", "shorter")
    return (
        f"{side} is longer almost as a rule (correlation {correlation:+.2f}): a model that trains on these "
        f"pairs learns to write {learns} answers first. Set length: matched, or sample more"
    )


def length_table(figures: Mapping[str, Mapping[str, Any]], unit: str) -> Table:
    """Return the figures of each mode as a table for a terminal."""
    table = Table(title=f"Lengths in {unit}", title_justify="left")
    for name in ("mode", "pairs", "chosen", "rejected", "chosen longer", "correlation"):
        table.add_column(name, justify="left" if name == "mode" else "right")
    for mode, of_mode in figures.items():
        table.add_row(
            mode,
            f"{of_mode['pairs']:,}",
            f"{of_mode['chosen']:,.1f}",
            f"{of_mode['rejected']:,.1f}",
            f"{of_mode['chosen_longer']:.0%}",
            f"{of_mode['correlation']:+.2f}",
        )
    return table
