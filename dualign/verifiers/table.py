"""The kinds of verifier, in one table. They never see the thinking.

A new kind is a file of this room and its row in `VERIFIERS`; task files then accept its name, and
its settings as keys: `verifier: {kind: contains, need: any}`.
"""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, Literal

from dualign.config import nearest
from dualign.errors import EvaluationError
from dualign.verifiers.base import Verdict, Verifier
from dualign.verifiers.calls import CallsVerifier
from dualign.verifiers.choice import ChoiceVerifier
from dualign.verifiers.contains import ContainsVerifier
from dualign.verifiers.exact import ExactVerifier
from dualign.verifiers.instructions import InstructionsVerifier
from dualign.verifiers.integer import IntegerVerifier
from dualign.verifiers.json_schema import JsonSchemaVerifier
from dualign.verifiers.mathematics import MathVerifier
from dualign.verifiers.python_function import PythonVerifier
from dualign.verifiers.recall import RecallVerifier
from dualign.verifiers.regex import RegexVerifier
from dualign.verifiers.unit_tests import UnitTestsVerifier

VERIFIERS: dict[str, type[Verifier]] = {
    "exact": ExactVerifier,
    "integer": IntegerVerifier,
    "choice": ChoiceVerifier,
    "math": MathVerifier,
    "regex": RegexVerifier,
    "contains": ContainsVerifier,
    "recall": RecallVerifier,
    "json_schema": JsonSchemaVerifier,
    "instructions": InstructionsVerifier,
    "calls": CallsVerifier,
    "unit_tests": UnitTestsVerifier,
    "python": PythonVerifier,
}

if TYPE_CHECKING:
    VerifierSettings = str | Verifier
else:
    VerifierSettings = reduce(or_, VERIFIERS.values(), Literal[tuple(VERIFIERS)])


def settings_problems(settings: str | Verifier) -> list[tuple[str, str]]:
    """Return what a `verifier` key lacks, as (key, message): a name alone isn't enough for some kinds."""
    needed = VERIFIERS[settings].needed() if isinstance(settings, str) else []
    if not needed:
        return []
    keys = ", ".join(f"{name}: ..." for name in needed)
    return [("verifier", f"expected {{kind: {settings}, {keys}}}, found a name alone")]


def verifier_of(settings: str | Verifier) -> Verifier:
    """Return the verifier that a task names, by its kind alone or with settings.

    Raises:
        EvaluationError: there is no such kind.
    """
    if isinstance(settings, Verifier):
        return settings
    if settings not in VERIFIERS:
        raise EvaluationError(f"unknown verifier {settings!r}{nearest(settings, [*VERIFIERS])}")
    return VERIFIERS[settings]()


def verify(settings: str | Verifier, answer: str, expected: Any) -> Verdict:
    """Return whether `answer` gives the `expected` answer, and why not.

    Raises:
        EvaluationError: there is no such verifier.
        DataError: the verifier can't read `expected`.
    """
    verifier = verifier_of(settings)
    return verifier.judge(answer, verifier.read(expected))
