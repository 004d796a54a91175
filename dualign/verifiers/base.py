"""What every kind of verifier has: settings, how it reads `expected`, and its verdict with a reason."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from dualign.errors import DataError, EvaluationError, excerpt


@dataclass(frozen=True, slots=True)
class Verdict:
    """Right or wrong; `reason` says why an answer is wrong, in words that can be counted."""

    right: bool
    reason: str = ""
    score: float | None = None
    """between 0 and 1, of a verifier that grades; right is then a score of 1"""
    scores: Mapping[str, Any] = field(default_factory=dict)
    """values of a harness's metrics, by name"""

    def __bool__(self) -> bool:
        return self.right

    def graded(self, score: float) -> "Verdict":
        """Return the verdict with a score."""
        return replace(self, score=score)


RIGHT = Verdict(True)


def wrong(reason: str) -> Verdict:
    """Return the verdict on a wrong answer."""
    return Verdict(False, reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verifier:
    """One kind of verifier with its settings; each kind is a subclass in a file of its own.

    Subclasses name their fields as keys of a task file, and import what isn't the standard
    library inside functions: task files are read without it.
    """

    takes_lists: ClassVar[bool] = False
    """`expected` may be a list or an object, too"""
    row_fields: ClassVar[tuple[str, ...]] = ()
    """fields of a row that together say what is expected, where nothing else names it"""
    paths: ClassVar[tuple[str, ...]] = ()
    """settings that may name a file, relative to the task file"""
    kind: str = field(default="")

    @property
    def needs_expected(self) -> bool:
        """Whether every row has to say what is expected."""
        return True

    def problems(self) -> list[tuple[str, str]]:
        """Return what is wrong with the settings, as (key, message)."""
        return []

    def require(self) -> None:
        """Check that this machine can do it, before anything is generated.

        Raises:
            EvaluationError: a package, file or means of the system is missing.
        """

    def expected_in(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what is expected by a row's own fields; None if it hasn't all of them."""
        is_there = self.row_fields and all(name in row for name in self.row_fields)
        return {name: row[name] for name in self.row_fields} if is_there else None

    def read(self, expected: Any) -> Any:
        """Return `expected` in the form that `judge` takes.

        Raises:
            DataError: this verifier can't read it.
        """
        if isinstance(expected, list | dict) or expected is None:
            raise DataError(
                f"expected answer {excerpt(expected)}: the verifier {self.kind} takes text or a number"
            )
        return str(expected)

    def judge(self, answer: str, expected: Any) -> Verdict:
        """Return whether `answer` is right by an `expected` that `read` returned."""
        raise NotImplementedError

    def judge_row(self, answer: str, expected: Any, place: str) -> Verdict:
        """Judge the answer to a row that stands at `place`.

        Raises:
            EvaluationError: the verifier fails; the message names the row.
        """
        try:
            return self.judge(answer, expected)
        except DataError as error:
            raise EvaluationError(f"{place}: {error}") from None

    @property
    def can_vote(self) -> bool:
        """Whether several answers to a row can be counted by what they say."""
        return True

    def vote(self, answer: str, expected: Any) -> str | None:
        """Return an answer in a normal form: answers that say the same have the same one.

        None for an answer that says nothing; asked only if `can_vote`.

        Args:
            expected: of the row, as `read` returned it; it may say how the answer is read.
        """
        return answer.strip() or None

    def located(self, folder: Path) -> Self:
        """Return the verifier with paths relative to `folder` made absolute."""
        paths = {name: getattr(self, name) for name in self.paths}
        located = {
            name: str((folder / Path(value).expanduser()).resolve())
            for name, value in paths.items()
            if isinstance(value, str)
        }
        return replace(self, **located)

    @property
    def files(self) -> tuple[str, ...]:
        """Files that verdicts depend on."""
        values = (getattr(self, name) for name in self.paths)
        return tuple(value for value in values if isinstance(value, str))

    @classmethod
    def needed(cls) -> list[str]:
        """Return the settings without a default: a plain name isn't enough for such a kind."""
        return [
            item.name
            for item in fields(cls)
            if item.default is MISSING and item.default_factory is MISSING
        ]
