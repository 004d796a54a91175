"""Compare values, with math-verify."""

from dataclasses import dataclass
from typing import Any, Literal

from dualign.errors import DataError, EvaluationError
from dualign.verifiers.base import RIGHT, Verdict, Verifier, wrong

# math-verify's limit by the clock is 5, which a busy machine may reach with a plain answer.
_MATH_SECONDS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class MathVerifier(Verifier):
    """The value: `1/2` is `\\\\frac{1}{2}` is 0.5."""

    kind: Literal["math"] = "math"
    """this kind of verifier"""

    def require(self) -> None:
        try:
            import math_verify  # noqa: F401 - whether it is there
        except ImportError:
            raise EvaluationError(
                "the verifier math needs a package: pip install 'dualign[eval]'"
            ) from None

    def read(self, expected: Any) -> Any:
        self.require()
        from math_verify import parse

        text = Verifier.read(self, expected)
        marked = text if "$" in text or "\\boxed" in text else f"${text}$"
        gold = parse(marked, parsing_timeout=_MATH_SECONDS)
        if not gold:
            raise DataError(
                f"expected answer {text!r} can't be read as mathematics; use the verifier exact"
            )
        return gold

    def judge(self, answer: str, expected: Any) -> Verdict:
        from math_verify import parse, verify

        value = parse(answer, parsing_timeout=_MATH_SECONDS)
        if not value:
            return wrong("no mathematics")
        equal = verify(expected, value, timeout_seconds=_MATH_SECONDS)
        return RIGHT if equal else wrong("another value")

    def vote(self, answer: str, expected: Any) -> str | None:
        """Return a number to twelve digits, so that 1/2 is 0.5; what is none as it was read."""
        from math_verify import parse

        value = parse(answer, parsing_timeout=_MATH_SECONDS)
        if not value:
            return None
        is_number = getattr(value[0], "is_number", False)  # of a sympy expression
        return str(value[0].evalf(12) if is_number else value[0])
