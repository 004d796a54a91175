"""Questions about made documents (RULER's qa): one fact of one, or two facts of two.

RULER takes SQuAD and HotpotQA. Here people, companies and towns are invented, so that no model has
read about them, and every other document states facts of the same kinds about others.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain

from dualign.tasks.long.draft import Draft, Draw
from dualign.tasks.long.language import Language, Prefixes, invented
from dualign.tasks.long.needles import inserted

_YEARS = (1950, 2019)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    text: str
    opens: bool = False
    """it is the title of a document"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Facts:
    """A person, where they live, and the company that they work for."""

    name: str
    town: str
    company: str
    year: str
    seat: str
    founded: str
    goods: str

    @classmethod
    def drawn(cls, language: Language, numbers: random.Random) -> "_Facts":
        town, seat = numbers.sample([invented("town", numbers) for _ in range(3)], 2)
        return cls(
            name=language.person(numbers),
            town=town,
            company=invented("company", numbers),
            year=str(numbers.randint(*_YEARS)),
            seat=seat,
            founded=str(numbers.randint(*_YEARS)),
            goods=numbers.choice(language.texts["documents"]["goods"]),
        )

    def values(self) -> set[str]:
        """Return all that can be asked for, or asked by."""
        return {self.name, self.town, self.company, self.year, self.seat}


def draft_one(language: Language, draw: Draw, length: int) -> Draft:
    """Return a problem: a fact about a person, which stands in one document."""
    asked = draw.stream("question").choice(("town", "company", "year"))
    return _draft(language, draw, asked)


def draft_two(language: Language, draw: Draw, length: int) -> Draft:
    """Return a problem: where a person's company has its seat, which takes two documents to know."""
    return _draft(language, draw, "seat")


def _draft(language: Language, draw: Draw, asked: str) -> Draft:
    texts = language.texts["documents"]
    core = draw.stream("facts")
    facts = _Facts.drawn(language, core)
    needed = [_person(language, facts, core)]
    depths = [draw.depth()]
    if asked == "seat":
        needed.append(_company(language, facts, core))
        depths.append(core.random())
    placed = sorted(zip(depths, _documents(chain(*needed)), strict=True))
    question = texts["questions"][asked].format(name=facts.name)
    others = Prefixes(_others(language, draw.stream("others"), facts, both=asked == "seat"))

    def text(size: int) -> str:
        documents = inserted(_documents(others.first(size)), placed)
        shown = "\n\n".join(
            f"{texts['heading'].format(number=number)}\n{document}"
            for number, document in enumerate(documents, 1)
        )
        ask = texts["ask"].format(question=question)
        return f"{texts['intro']}\n\n{shown}\n\n{texts['intro']}\n\n{ask}"

    return Draft(
        expected=(str(getattr(facts, asked)),),
        text=text,
        smallest=1,
        extra={} if asked == "seat" else {"depth": round(depths[0], 3)},
    )


def _others(
    language: Language, numbers: random.Random, facts: _Facts, *, both: bool
) -> Iterator[_Line]:
    """Yield the lines of documents without end, none of which has a value of `facts`."""
    while True:
        other = _Facts.drawn(language, numbers)
        if other.values() & facts.values():
            continue
        yield from _person(language, other, numbers)
        if both:
            yield from _company(language, other, numbers)


def _person(language: Language, facts: _Facts, numbers: random.Random) -> list[_Line]:
    own = [language.sentence(numbers, facts.name) for _ in range(3)]
    return _lines(language, facts, ("town", "company", "year"), facts.name, own, numbers)


def _company(language: Language, facts: _Facts, numbers: random.Random) -> list[_Line]:
    own = [language.thought(numbers)]
    return _lines(language, facts, ("seat", "founded", "goods"), facts.company, own, numbers)


def _lines(
    language: Language,
    facts: _Facts,
    stated: Sequence[str],
    title: str,
    own: Sequence[str],
    numbers: random.Random,
) -> list[_Line]:
    """Return a document: its title, then its facts and sentences of its own in any order."""
    texts, fields = language.texts["documents"]["facts"], asdict(facts)
    sentences = [*(texts[fact].format(**fields) for fact in stated), *own]
    numbers.shuffle(sentences)
    return [_Line(text=title, opens=True), *(_Line(text=sentence) for sentence in sentences)]


def _documents(lines: Iterable[_Line]) -> list[str]:
    """Return the text of each document; the last may miss its end."""
    documents: list[list[str]] = []
    for line in lines:
        if line.opens:
            documents.append([])
        documents[-1].append(line.text)
    return [f"{title}\n{' '.join(sentences)}".strip() for title, *sentences in documents]
