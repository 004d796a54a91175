"""Needles in a haystack: RULER's eight retrieval tasks (arXiv 2404.06654, section 3 and table 2)."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from dualign.tasks.long.draft import Draft, Draw
from dualign.tasks.long.language import Language, Prefixes, code, number

Haystack = Literal["noise", "essay", "needles"]
_DIGITS = 7  # of a needle's number


@dataclass(frozen=True, kw_only=True, slots=True)
class Needles:
    """One kind of needles: their haystack, their number, and what keys and values are."""

    haystack: Haystack
    keys: Literal["words", "uuids"] = "words"
    values: Literal["numbers", "uuids"] = "numbers"
    hidden: int = 1
    """keys in the haystack, besides those that the haystack is made of"""
    values_of_a_key: int = 1
    asked: int = 1
    """keys that the question names"""

    def draft(self, language: Language, draw: Draw, length: int) -> Draft:
        """Return a problem: needles, a haystack around them, and a question for their values."""
        core = draw.stream("needles")
        names = draw.stream("keys")  # lists of words have other lengths in other languages
        keys = _distinct(lambda: self._key(language, names), self.hidden)
        values = {key: [self._value(core) for _ in range(self.values_of_a_key)] for key in keys}
        asked = core.sample(keys, self.asked)
        texts = language.texts["needles"][self.values]
        needles = [
            (key, texts["needle"].format(key=key, value=value))
            for key, own in values.items()
            for value in own
        ]
        core.shuffle(needles)
        depths = [core.random() for _ in needles]
        depth = draw.depth()
        depths[next(i for i, (key, _) in enumerate(needles) if key in asked)] = depth
        placed = sorted(zip(depths, (text for _, text in needles), strict=True))
        hay = Prefixes(self._hay(language, draw.stream("haystack"), asked))
        many = self.values_of_a_key * self.asked > 1
        intro, ask = (
            (texts["many"], texts["ask_many"]) if many else (texts["one"], texts["ask_one"])
        )
        question = ask.format(key=language.joined(asked))
        joint = " " if self.haystack == "essay" else "\n"

        def text(size: int) -> str:
            return f"{intro}\n{joint.join(inserted(hay.first(size), placed))}\n{question}"

        return Draft(
            expected=tuple(value for key in asked for value in values[key]),
            text=text,
            smallest=1,
            extra={} if many else {"depth": round(depth, 3)},
        )

    def _hay(
        self, language: Language, numbers: random.Random, asked: Sequence[str]
    ) -> Iterator[str]:
        if self.haystack == "essay":
            yield from language.essay(numbers)
        needle = language.texts["needles"][self.values]["needle"]
        while True:
            if self.haystack == "noise":
                yield language.texts["noise"]
            elif (key := self._key(language, numbers)) not in asked:
                yield needle.format(key=key, value=self._value(numbers))

    def _key(self, language: Language, numbers: random.Random) -> str:
        return code(numbers) if self.keys == "uuids" else language.key(numbers)

    def _value(self, numbers: random.Random) -> str:
        return code(numbers) if self.values == "uuids" else number(numbers, _DIGITS)


def inserted(hay: Sequence[str], placed: Sequence[tuple[float, str]]) -> Iterator[str]:
    """Yield the hay with texts at their depths: `placed` has (depth from 0 to 1, text), by depth."""
    start = 0
    for depth, text in placed:
        end = round(depth * len(hay))
        yield from hay[start:end]
        yield text
        start = end
    yield from hay[start:]


def _distinct(draw: Callable[[], str], count: int) -> list[str]:
    items: dict[str, None] = {}
    while len(items) < count:
        items[draw()] = None
    return list(items)
