"""Words and sentences of a language, drawn from the lists of its file."""

import random
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

from dualign.hashing import sha256

Item = TypeVar("Item")
LANGUAGES = ("en", "fr", "es", "de", "it", "pt")
_THOUGHTS = 0.2
"""The share of whole sentences among the composed ones of an essay."""
_STARTS = [
    "Bal",
    "Cor",
    "Dar",
    "Fel",
    "Gar",
    "Hol",
    "Jar",
    "Kel",
    "Lor",
    "Mar",
    "Nor",
    "Par",
    "Quin",
    "Ros",
    "Sal",
    "Tor",
    "Ul",
    "Val",
    "Wes",
    "Zan",
]
_MIDDLES = ["a", "e", "i", "o", "u", "an", "en", "or", "il"]
_ENDS = {
    "town": ["bra", "dena", "lia", "mora", "nia", "rona", "sia", "tova", "vina", "zara"],
    "company": ["dex", "gix", "lux", "mix", "nox", "pax", "plan", "tex", "tron", "vex"],
    "surname": ["ard", "dal", "lli", "man", "ner", "rez", "sko", "ssen", "ton", "vic"],
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Language:
    """One of `LANGUAGES` with its texts; all its draws take a stream of random numbers."""

    code: str
    texts: Mapping[str, Any]

    @property
    def words(self) -> list[str]:
        """Single words, none of which is a part of another."""
        return [*self.texts["nouns"], *self.texts["adjectives"], *self.texts["verbs"]]

    def key(self, numbers: random.Random) -> str:
        """Draw a noun with an adjective, such as `yellow-anchor`."""
        noun = numbers.choice(self.texts["nouns"])
        adjective = numbers.choice(self.texts["adjectives"])
        return str(self.texts["key"]).format(adjective=adjective, noun=noun)

    def joined(self, items: Sequence[str]) -> str:
        """Return `a, b and c`."""
        *rest, last = items
        return f"{', '.join(rest)}{self.texts['and']}{last}" if rest else last

    def sentence(self, numbers: random.Random, who: str = "") -> str:
        """Draw a sentence about somebody who does something somewhere at some time."""
        essay = self.texts["essay"]
        verb, object_ = numbers.choice(essay["acts"])
        text = str(numbers.choice(essay["frames"])).format(
            who=who or numbers.choice(essay["who"]),
            verb=verb,
            object=object_,
            where=numbers.choice(essay["where"]),
            when=numbers.choice(essay["when"]),
        )
        return text[0].upper() + text[1:]

    def thought(self, numbers: random.Random) -> str:
        """Draw a whole sentence of a general kind."""
        return str(numbers.choice(self.texts["essay"]["thoughts"]))

    def essay(self, numbers: random.Random) -> Iterator[str]:
        """Yield sentences without end."""
        while True:
            is_thought = numbers.random() < _THOUGHTS
            yield self.thought(numbers) if is_thought else self.sentence(numbers)

    def person(self, numbers: random.Random) -> str:
        """Draw a name, of which there are 36,000."""
        return f"{numbers.choice(self.texts['names'])} {invented('surname', numbers)}"


@cache
def language(code: str) -> Language:
    """Return a language of `LANGUAGES`, read from its file."""
    text = _file(code).read_text(encoding="utf-8")
    return Language(code=code, texts=yaml.safe_load(text))


def digest(code: str) -> str:
    """Return the hash of a language's texts."""
    return sha256(_file(code))


def _file(code: str) -> Path:
    return Path(__file__).with_name(f"{code}.yaml")


def invented(kind: str, numbers: random.Random) -> str:
    """Draw a name that exists in no language, of a `town`, `company` or `surname`."""
    return "".join(map(numbers.choice, (_STARTS, _MIDDLES, _ENDS[kind])))


def number(numbers: random.Random, digits: int) -> str:
    """Draw a number of so many digits."""
    return str(numbers.randint(10 ** (digits - 1), 10**digits - 1))


def code(numbers: random.Random) -> str:
    """Draw a UUID."""
    return str(uuid.UUID(int=numbers.getrandbits(128), version=4))


class Prefixes(Generic[Item]):
    """The first items of an endless iterator, each made once."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._made: list[Item] = []

    def first(self, count: int) -> list[Item]:
        """Return so many items."""
        while len(self._made) < count:
            self._made.append(next(self._items))
        return self._made[:count]
