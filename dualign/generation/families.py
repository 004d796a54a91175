"""Prompts that start with the same tokens: samples of one prompt, few-shot examples, a system message.

Example (a letter is a token): `abcdx`, `abcdy`, `abz`, `q` sorted are compared with the first of their
family: the first three are one family, and share 4 and 2 tokens with `abcdx`. A prompt that shares
much more with the one after it than with its family's first is the first of a new family.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from dualign.generation.row import Row

WORTH = 32  # shared tokens that are worth a pass of their own


class Families:
    """The families of prompts, by their index."""

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self.family: dict[int, int] = {}
        """the index of the family's first prompt"""
        self.common: dict[int, int] = {}
        """tokens shared with that; two members share the smaller number of theirs"""
        order = sorted(range(len(prompts)), key=lambda i: (prompts[i], i))
        first = order[0] if order else 0
        for place, index in enumerate(order):
            common = _shared(prompts[first], prompts[index])
            after = order[min(place + 1, len(order) - 1)]
            if after != index and _shared(prompts[index], prompts[after]) >= common + WORTH:
                first, common = index, len(prompts[index])
            self.family[index], self.common[index] = first, common

    def order(self, rows: Sequence[Row]) -> list[Row]:
        """Return the longest rows first, since one too big for the memory is to fail at once; families
        stay together.
        """
        longest: dict[int, int] = {}
        for row in rows:
            family = self.family[row.index]
            longest[family] = max(row.longest, longest.get(family, 0))

        def place(row: Row) -> tuple[int, ...]:
            family = self.family[row.index]
            return -longest[family], family, -row.longest, -len(row.prompt_ids), row.index

        return sorted(rows, key=place)

    def split(self, rows: Sequence[Row]) -> list[list[Row]]:
        """Return the rows family by family, in the order of the first rows."""
        families: dict[int, list[Row]] = {}
        for row in rows:
            families.setdefault(self.family[row.index], []).append(row)
        return list(families.values())


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two prompts share from their start."""
    counts = range(1, min(len(first), len(second)) + 1)
    return bisect_left(counts, True, key=lambda n: first[:n] != second[:n])


def runs(
    rows: Sequence[Row], size: Callable[[Row], int], least: Callable[[int], int]
) -> Iterator[list[Row]]:
    """Yield rows of similar size together, largest first: none below `least` of the run's largest."""
    run: list[Row] = []
    for row in sorted(rows, key=size, reverse=True):
        if run and size(row) < least(size(run[0])):
            yield run
            run = []
        run.append(row)
    if run:
        yield run
