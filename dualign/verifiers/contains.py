"""Look for texts in the answer."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from dualign.errors import DataError, excerpt
from dualign.verifiers.base import RIGHT, Verdict, Verifier, wrong


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainsVerifier(Verifier):
    """The answer contains the row's text, or the texts of its list."""

    takes_lists: ClassVar[bool] = True
    kind: Literal["contains"] = "contains"
    """this kind of verifier"""
    need: Literal["all", "any"] = "all"
    """how many texts of a list the answer has to contain"""
    ignore_case: bool = False
    """whether `Paris` is found in `PARIS`"""

    def read(self, expected: Any) -> tuple[str, ...]:
        items = expected if isinstance(expected, list) else [expected]
        texts = tuple(str(item) for item in items if isinstance(item, str | int | float))
        if not texts or len(texts) < len(items) or not all(texts):
            raise DataError(
                f"expected answer {excerpt(expected)}: the verifier contains takes text, or a list of texts"
            )
        return texts

    @property
    def can_vote(self) -> bool:
        """Whole texts pass, which are rarely the same twice."""
        return False

    def judge(self, answer: str, expected: Any) -> Verdict:
        present = [self._folded(text) in self._folded(answer) for text in expected]
        if all(present) or (self.need == "any" and any(present)):
            return RIGHT
        return wrong("text is missing")

    def _folded(self, text: str) -> str:
        return text.casefold() if self.ignore_case else text
