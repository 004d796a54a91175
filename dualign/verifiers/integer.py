"""Compare the answer's last number."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from dualign.errors import DataError
from dualign.verifiers.base import RIGHT, Verdict, Verifier, wrong

# A sign counts only if no operand precedes it: `10-5` ends in 5, `= -5` in -5.
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]])[-\u2212])?(?<![\w.])(?:\d{1,3}(?:,\d{3})+(?!\d|,\d)|\d+)(?:\.\d+)?"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class IntegerVerifier(Verifier):
    """The answer's last number: `3 + 4 = 7` is 7, `1,204` is 1204, `7.5` isn't 7."""

    kind: Literal["integer"] = "integer"
    """this kind of verifier"""

    def read(self, expected: Any) -> Decimal:
        text = Verifier.read(self, expected)
        number = _plain(text.strip())
        if not re.fullmatch(r"[-+]?\d+", number):
            raise DataError(
                f"expected answer {text!r} isn't a whole number; use the verifier exact or math"
            )
        return Decimal(number)

    def judge(self, answer: str, expected: Any) -> Verdict:
        number = _last_number(answer)
        if number is None:
            return wrong("no number")
        return RIGHT if number == expected else wrong("another number")

    def vote(self, answer: str, expected: Any) -> str | None:
        number = _last_number(answer)
        if number is None:
            return None
        whole, point, rest = f"{number:f}".partition(".")
        return (whole + point + rest.rstrip("0")).removesuffix(".") if number else "0"


def _last_number(answer: str) -> Decimal | None:
    numbers = _NUMBER.findall(answer)
    return Decimal(_plain(numbers[-1])) if numbers else None


def _plain(number: str) -> str:
    return number.replace(",", "").replace("\u2212", "-")
