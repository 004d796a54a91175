"""Variable tracking: all names that a value is handed on to (RULER's vt)."""

import random
import string
from dataclasses import dataclass

from dualign.tasks.long.draft import Draft, Draw
from dualign.tasks.long.language import Language, number
from dualign.tasks.long.needles import inserted

_HOPS = 4
_DIGITS = 5
_EXAMPLE_LINES = 5


def draft(language: Language, draw: Draw, length: int) -> Draft:
    """Return a problem: a chain of assignments among lines of noise, after a solved example."""
    example = _Chain.drawn(draw.stream("example"), letters=3)
    chain = _Chain.drawn(draw.stream("chain"), letters=5)
    answer = language.texts["tracking"]["answer"].format(
        count=len(example.names), value=example.value, values=" ".join(example.names)
    )
    shown = f"{example.asked(language, _EXAMPLE_LINES)}\n{answer}\n\n"
    return Draft(
        expected=chain.names,
        text=lambda size: shown + chain.asked(language, size),
        smallest=1,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chain:
    names: tuple[str, ...]
    value: str
    depths: tuple[float, ...]

    @classmethod
    def drawn(cls, numbers: random.Random, letters: int) -> "_Chain":
        names: dict[str, None] = {}
        while len(names) <= _HOPS:
            names["".join(numbers.choices(string.ascii_uppercase, k=letters))] = None
        depths = sorted(numbers.random() for _ in names)
        return cls(names=tuple(names), value=number(numbers, _DIGITS), depths=tuple(depths))

    def asked(self, language: Language, size: int) -> str:
        """Return the task with so many lines of noise."""
        values = [self.value, *(f"VAR {name}" for name in self.names)]
        lines = [f"VAR {name} = {value}" for name, value in zip(self.names, values, strict=False)]
        hay = inserted([language.texts["noise"]] * size, list(zip(self.depths, lines, strict=True)))
        texts = language.texts["tracking"]
        question = texts["ask"].format(value=self.value)
        return f"{texts['intro']}\n\n{chr(10).join(hay)}\n{question}"
