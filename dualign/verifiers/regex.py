"""Search the answer for a pattern."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from dualign.errors import DataError
from dualign.verifiers.base import RIGHT, Verdict, Verifier, wrong
from dualign.verifiers.exact import plain

# A pattern such as (a+)+$ may take years on one answer.
_SECONDS = 10
_BRACE = re.compile(r"(\\N\{[^}]*\}|\\.)|\{(?!\d+(?:,\d*)?\}|,\d*\})", re.DOTALL)
"""An escape, or a brace that begins no count of repeats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegexVerifier(Verifier):
    """The row's answer is a pattern; or the task's pattern finds what is compared with it."""

    kind: Literal["regex"] = "regex"
    """this kind of verifier"""
    pattern: str | None = None
    """finds the answer: the first group of its last match, or the whole match, is compared with the
    row's answer as by exact; absent: the row's answer is a pattern that the answer has to match
    anywhere
    """

    def problems(self) -> list[tuple[str, str]]:
        if self.pattern is None:
            return []
        try:
            re.compile(self.pattern)
        except re.error as error:
            return [("pattern", f"{self.pattern!r} isn't a regular expression: {error}")]
        return []

    def read(self, expected: Any) -> str:
        text = str(Verifier.read(self, expected))
        if self.pattern is None:
            try:
                re.compile(text)
            except re.error as error:
                raise DataError(
                    f"expected answer {text!r} isn't a regular expression: {error}"
                ) from None
        return text

    def judge(self, answer: str, expected: Any) -> Verdict:
        pattern = expected if self.pattern is None else self.pattern
        try:
            text = _last_match(pattern, answer)
        except TimeoutError:
            return wrong("timeout")
        if text is None:
            return wrong("no match")
        return RIGHT if self.pattern is None or plain(text) == plain(expected) else wrong("differs")

    @property
    def can_vote(self) -> bool:
        """Only the task's pattern says what of an answer counts."""
        return self.pattern is not None

    def vote(self, answer: str, expected: Any) -> str | None:
        assert self.pattern is not None, "asked only if it can vote"
        try:
            text = _last_match(self.pattern, answer)
        except TimeoutError:
            return None
        return None if text is None else plain(text)


def _last_match(pattern: str, answer: str) -> str | None:
    """Return the first group of a pattern's last match, or the whole match; None without one."""
    matches = find_all(pattern, answer)
    return (matches[-1].group(1 if matches[-1].re.groups else 0) or "") if matches else None


def find_all(pattern: str, text: str) -> list[Any]:
    """Return all matches of a pattern of `re`.

    Raises:
        TimeoutError: it takes too long.
    """
    import regex  # transformers' own dependency: patterns as in re, and a limit of time

    # There x{e} is x with any error, so \frac{d}{dx} would match what it isn't.
    plain_braces = _BRACE.sub(lambda match: match[1] or r"\{", pattern)
    return list(regex.finditer(plain_braces, text, timeout=_SECONDS))
