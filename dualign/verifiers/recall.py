"""Count the expected texts that are in the answer (RULER's string_match_all, arXiv 2404.06654)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from dualign.errors import DataError, excerpt
from dualign.verifiers.base import RIGHT, Verdict, Verifier, wrong


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallVerifier(Verifier):
    """The share of the row's texts that the answer contains, whatever their case; right if all."""

    takes_lists: ClassVar[bool] = True
    kind: Literal["recall"] = "recall"
    """this kind of verifier"""

    def read(self, expected: Any) -> tuple[str, ...]:
        items = expected if isinstance(expected, list | tuple) else [expected]
        texts = tuple(str(item) for item in items if isinstance(item, str | int | float))
        if not texts or len(texts) < len(items) or not all(texts):
            raise DataError(
                f"expected answer {excerpt(expected)}: the verifier recall takes text, or a list of texts"
            )
        return texts

    @property
    def can_vote(self) -> bool:
        """Whole texts pass, which are rarely the same twice."""
        return False

    def judge(self, answer: str, expected: Any) -> Verdict:
        share = sum(text.lower() in answer.lower() for text in expected) / len(expected)
        if share == 1:
            return RIGHT.graded(1.0)
        return wrong("text is missing").graded(share)
