"""Tells right answers from wrong ones; a verifier gets the answer, never the thinking before it."""

import re
from collections.abc import Callable
from decimal import Decimal
from difflib import get_close_matches

from dualign.errors import DataError, EvaluationError

# A sign counts only where no operand stands before it: `10-5` ends in 5, `= -5` in -5.
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]])[-\u2212])?(?<![\w.])(?:\d{1,3}(?:,\d{3})+(?!\d|,\d)|\d+)(?:\.\d+)?"
)
_QUOTES = "\"'`*_\u201c\u201d\u2018\u2019"
_NAMED_CHOICE = re.compile(
    r"(?:answer|choice|option)\s*(?:is|:|=)?\s*[\s*_(\[{$`\"']*([A-Z])(?![A-Za-z])|\\boxed\{\s*(?:\\text\{)?\(?([A-Z])\)?"
)
_FIRST_CHOICE = re.compile(r"\A[\s*_(\[`\"']*([A-Z])(?:[\s*_)\]`\"'.:]*\Z|[*_`]*[).:\]])")
_LONE_CHOICE = re.compile(r"(?<![\w'\u2019])([B-HJ-Z]|A(?!\s+[a-z]))(?![\w'\u2019])")


def verify(name: str, answer: str, expected: str) -> bool:
    """Whether `answer` says `expected`, by the verifier `name`.

    Raises:
        EvaluationError: there is no such verifier.
    """
    return verifier(name)(answer, expected)


def verifier(name: str) -> Callable[[str, str], bool]:
    """The verifier of that name; EvaluationError where there is none."""
    if name not in VERIFIERS:
        near = get_close_matches(name, VERIFIERS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise EvaluationError(
            f"unknown verifier {name!r}{hint}; expected one of {', '.join(VERIFIERS)}"
        )
    return VERIFIERS[name]


def exact(answer: str, expected: str) -> bool:
    """The whole answer is that text; case, spaces, quotes, emphasis, a last stop don't count."""
    return _normal(answer) == _normal(expected)


def integer(answer: str, expected: str) -> bool:
    """The answer's last number: `3 + 4 = 7` is 7, `1,204` is 1204, `7.5` isn't 7."""
    wanted = expected.strip().replace(",", "").replace("\u2212", "-")
    if not re.fullmatch(r"[-+]?\d+", wanted):
        raise DataError(
            f"expected answer {expected!r} isn't a whole number; use the verifier exact or math"
        )
    found = [match.group() for match in _NUMBER.finditer(answer)]
    if not found:
        return False
    return Decimal(found[-1].replace(",", "").replace("\u2212", "-")) == Decimal(wanted)


def choice(answer: str, expected: str) -> bool:
    """The letter settled on: named ("answer is B"), at the head ("B) four"), or the last alone."""
    wanted = expected.strip().strip("().").upper()
    if not re.fullmatch(r"[A-Z]", wanted):
        raise DataError(f"expected answer {expected!r} isn't one letter; use the verifier exact")
    named = [match.group(1) or match.group(2) for match in _NAMED_CHOICE.finditer(answer)]
    if named:
        return bool(named[-1] == wanted)
    first = _FIRST_CHOICE.match(answer)
    if first:
        return first.group(1) == wanted
    alone = _LONE_CHOICE.findall(answer)
    return bool(alone) and alone[-1] == wanted


def math(answer: str, expected: str) -> bool:
    """Mathematically the same, by math-verify: `1/2` is `\\\\frac{1}{2}` is 0.5."""
    try:
        from math_verify import parse
        from math_verify import verify as same
    except ImportError:
        raise EvaluationError(
            "the verifier math needs a package: pip install 'dualign[eval]'"
        ) from None
    wanted = expected if "$" in expected or "\\boxed" in expected else f"${expected}$"
    gold = parse(wanted)
    if not gold:
        raise DataError(
            f"expected answer {expected!r} can't be read as mathematics; use the verifier exact"
        )
    return bool(same(gold, parse(answer)))


def _normal(text: str) -> str:
    text = " ".join(text.casefold().split()).strip(_QUOTES + " ")
    return text.removesuffix(".").strip(_QUOTES + " ")


VERIFIERS: dict[str, Callable[[str, str], bool]] = {
    "exact": exact,
    "integer": integer,
    "choice": choice,
    "math": math,
}
