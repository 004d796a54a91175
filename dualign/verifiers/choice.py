"""Compare the letter of a choice."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from dualign.errors import DataError
from dualign.verifiers.base import RIGHT, Verdict, Verifier, wrong

# In the six languages of dualign's benchmarks.
_NAMES = "[Aa]nswer|choice|option|[Aa]ntwort|[Rr]éponse|[Rr]espuesta|[Rr]isposta|[Rr]esposta"
_NAMED_CHOICE = re.compile(
    rf"(?:{_NAMES})\s*(?:is|ist|est|es|è|é|:|=)?\s*[\s*_(\[{{$`\"']*([A-Z])(?![A-Za-zÀ-ÿ])"
    r"|\\boxed\{\s*(?:\\text\{)?\(?([A-Z])\)?"
)
_FIRST_CHOICE = re.compile(r"\A[\s*_(\[`\"']*([A-Z])(?:[\s*_)\]`\"'.:]*\Z|[*_`]*[).:\]])")
_LONE_CHOICE = re.compile(r"(?<![\w'\u2019])([B-HJ-Z]|A(?!\s+[a-z]))(?![\w'\u2019])")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceVerifier(Verifier):
    """The letter: a named one ("answer is B"), the first ("B) four"), or the last alone."""

    kind: Literal["choice"] = "choice"
    """this kind of verifier"""

    def read(self, expected: Any) -> str:
        text = Verifier.read(self, expected)
        letter = str(text.strip().strip("().").upper())
        if not re.fullmatch(r"[A-Z]", letter):
            raise DataError(f"expected answer {text!r} isn't one letter; use the verifier exact")
        return letter

    def judge(self, answer: str, expected: Any) -> Verdict:
        letter = _letter(answer)
        if not letter:
            return wrong("no letter")
        return RIGHT if letter == expected else wrong("another letter")

    def vote(self, answer: str, expected: Any) -> str | None:
        return _letter(answer) or None


def _letter(answer: str) -> str:
    named = [match.group(1) or match.group(2) for match in _NAMED_CHOICE.finditer(answer)]
    if named:
        return str(named[-1])
    first = _FIRST_CHOICE.match(answer)
    if first:
        return first.group(1)
    alone = _LONE_CHOICE.findall(answer)
    return str(alone[-1]) if alone else ""
