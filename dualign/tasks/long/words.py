"""Aggregation: the most common words of a list, and of a coded text (RULER's cwe and fwe)."""

import math
import random
import string
from collections.abc import Sequence

from dualign.tasks.long.draft import Draft, Draw
from dualign.tasks.long.language import Language

_COMMON = 10
_SHORT = 4096
"""Below this length, words are repeated less often."""
_ALPHA = 2.0
_ZETA = math.pi**2 / 6  # of alpha
_LETTERS = 6
_DOTS = "..."
"""The most frequent word of a coded text, which doesn't count."""


def draft_common(language: Language, draw: Draw, length: int) -> Draft:
    """Return a problem: a numbered list in which ten words are more frequent, after a solved example."""
    is_short = length < _SHORT
    core = draw.stream("words")
    words = core.sample(language.words, len(language.words))
    common, rest = words[:_COMMON], words[_COMMON:]
    nouns = [noun for noun in language.texts["nouns"] if noun not in common]
    pairs = [f"{first}-{second}" for first in nouns for second in nouns if first != second]
    example = draw.stream("example").sample(language.words, 20 if is_short else 40)
    example_repeats = (3, 1) if is_short else (10, 3)
    shown = _asked(language, example[:_COMMON], example[_COMMON:], example_repeats, draw)
    answer = language.texts["common_words"]["answer"].format(
        count=_COMMON, values=_numbered(example[:_COMMON])
    )
    repeats = (6, 1) if is_short else (30, 3)

    def text(size: int) -> str:
        others = rest[:size]
        if size > len(rest):  # single words are used up: nouns in pairs follow
            others = rest + draw.stream("pairs").sample(pairs, len(pairs))[: size - len(rest)]
        return f"{shown}\n{answer}\n\n{_asked(language, common, others, repeats, draw)}"

    return Draft(expected=tuple(common), text=text, smallest=1, largest=len(rest) + len(pairs))


def _asked(
    language: Language,
    common: Sequence[str],
    others: Sequence[str],
    repeats: tuple[int, int],
    draw: Draw,
) -> str:
    words = [*common] * repeats[0] + [*others] * repeats[1]
    draw.stream("order").shuffle(words)
    texts = language.texts["common_words"]
    return f"{texts['intro']}\n{_numbered(words)}\n{texts['ask'].format(count=_COMMON)}"


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))


def draft_frequent(language: Language, draw: Draw, length: int) -> Draft:
    """Return a problem: a text of made words, whose frequencies fall with the square of their rank."""
    core = draw.stream("words")
    count = max(8, length // 50)
    ranked = [_DOTS, *_coded(core, count)]
    texts = language.texts["frequent_words"]

    def text(size: int) -> str:
        words = [
            word
            for rank, word in enumerate(ranked, 1)
            for _ in range(int(size * rank**-_ALPHA / _ZETA))
        ]
        draw.stream("order").shuffle(words)
        return f"{texts['intro']} {' '.join(words)}\n{texts['ask']}"

    # From 60 on the fourth word is more frequent than the fifth.
    return Draft(expected=tuple(ranked[1:4]), text=text, smallest=60)


def _coded(numbers: random.Random, count: int) -> list[str]:
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(numbers.choices(string.ascii_lowercase, k=_LETTERS))] = None
    return list(words)
