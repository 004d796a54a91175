"""Verifiers: functions (answer, expected) -> right or wrong. They never see the thinking.

A new one is a function here and an entry in `VERIFIERS`; task files then accept its name. Only the
standard library is imported at the top: recipes load from here.
"""

import re
from collections.abc import Callable
from decimal import Decimal
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

from dualign.errors import DataError, EvaluationError

# A sign counts only if no operand precedes it: `10-5` ends in 5, `= -5` in -5.
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]])[-\u2212])?(?<![\w.])(?:\d{1,3}(?:,\d{3})+(?!\d|,\d)|\d+)(?:\.\d+)?"
)
_QUOTES = "\"'`*_\u201c\u201d\u2018\u2019"
_NAMED_CHOICE = re.compile(
    r"(?:answer|choice|option)\s*(?:is|:|=)?\s*[\s*_(\[{$`\"']*([A-Z])(?![A-Za-z])|\\boxed\{\s*(?:\\text\{)?\(?([A-Z])\)?"
)
_FIRST_CHOICE = re.compile(r"\A[\s*_(\[`\"']*([A-Z])(?:[\s*_)\]`\"'.:]*\Z|[*_`]*[).:\]])")
# math-verify's limit by the clock is 5, which a busy machine may reach with a plain answer.
_MATH_SECONDS = 30
_LONE_CHOICE = re.compile(r"(?<![\w'\u2019])([B-HJ-Z]|A(?!\s+[a-z]))(?![\w'\u2019])")


def verify(name: str, answer: str, expected: str) -> bool:
    """Return whether `answer` gives the `expected` answer, by the verifier `name`.

    Raises:
        EvaluationError: there is no such verifier.
        DataError: the verifier can't read `expected`.
    """
    if name not in VERIFIERS:
        near = get_close_matches(name, VERIFIERS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise EvaluationError(
            f"unknown verifier {name!r}{hint}; expected one of {', '.join(VERIFIERS)}"
        )
    return VERIFIERS[name](answer, expected)


def _exact(answer: str, expected: str) -> bool:
    """Compare whole texts; case, spaces, quotes, emphasis and a final full stop don't count."""
    return _normal(answer) == _normal(expected)


def _integer(answer: str, expected: str) -> bool:
    """Compare the answer's last number: `3 + 4 = 7` is 7, `1,204` is 1204, `7.5` isn't 7."""
    target = expected.strip().replace(",", "").replace("\u2212", "-")
    if not re.fullmatch(r"[-+]?\d+", target):
        raise DataError(
            f"expected answer {expected!r} isn't a whole number; use the verifier exact or math"
        )
    numbers = [match.group() for match in _NUMBER.finditer(answer)]
    if not numbers:
        return False
    return Decimal(numbers[-1].replace(",", "").replace("\u2212", "-")) == Decimal(target)


def _choice(answer: str, expected: str) -> bool:
    """Compare the letter: a named one ("answer is B"), the first ("B) four"), or the last alone."""
    letter = expected.strip().strip("().").upper()
    if not re.fullmatch(r"[A-Z]", letter):
        raise DataError(f"expected answer {expected!r} isn't one letter; use the verifier exact")
    named = [match.group(1) or match.group(2) for match in _NAMED_CHOICE.finditer(answer)]
    if named:
        return bool(named[-1] == letter)
    first = _FIRST_CHOICE.match(answer)
    if first:
        return first.group(1) == letter
    alone = _LONE_CHOICE.findall(answer)
    return bool(alone) and alone[-1] == letter


def _math(answer: str, expected: str) -> bool:
    """Compare values with math-verify: `1/2` is `\\\\frac{1}{2}` is 0.5."""
    try:
        from math_verify import parse
        from math_verify import verify as equal
    except ImportError:
        raise EvaluationError(
            "the verifier math needs a package: pip install 'dualign[eval]'"
        ) from None
    text = expected if "$" in expected or "\\boxed" in expected else f"${expected}$"
    gold = parse(text, parsing_timeout=_MATH_SECONDS)
    if not gold:
        raise DataError(
            f"expected answer {expected!r} can't be read as mathematics; use the verifier exact"
        )
    value = parse(answer, parsing_timeout=_MATH_SECONDS)
    return bool(equal(gold, value, timeout_seconds=_MATH_SECONDS))


def _normal(text: str) -> str:
    text = " ".join(text.casefold().split()).strip(_QUOTES + " ")
    return text.removesuffix(".").strip(_QUOTES + " ")


VERIFIERS: dict[str, Callable[[str, str], bool]] = {
    "exact": _exact,
    "integer": _integer,
    "choice": _choice,
    "math": _math,
}

if TYPE_CHECKING:
    VerifierName = str
else:
    VerifierName = Literal[tuple(VERIFIERS)]
