"""Ask a function of the user's own."""

import sys
import traceback
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

from dualign.config import nearest
from dualign.errors import DataError, EvaluationError, excerpt
from dualign.verifiers.base import RIGHT, Verdict, Verifier, wrong


@dataclass(frozen=True, kw_only=True, slots=True)
class PythonVerifier(Verifier):
    """A function of yours, called with the answer and the row's `answer`; it runs in this process."""

    takes_lists: ClassVar[bool] = True
    paths: ClassVar[tuple[str, ...]] = ("file",)
    kind: Literal["python"] = "python"
    """this kind of verifier"""
    file: str
    """a .py file, relative to the task file; where it changes, answers are judged again"""
    function: str
    """its function (answer, expected): returns True, False, or (False, reason)"""

    @property
    def needs_expected(self) -> bool:
        return False

    def require(self) -> None:
        _function(self.file, self.function)

    def read(self, expected: Any) -> Any:
        return expected

    @property
    def can_vote(self) -> bool:
        """Whole texts pass, which are rarely the same twice."""
        return False

    def judge(self, answer: str, expected: Any) -> Verdict:
        name = f"{Path(self.file).name}: {self.function}"
        try:
            # A copy: what the function does to a list would change the verdicts on other answers.
            verdict = _function(self.file, self.function)(answer, deepcopy(expected))
        except EvaluationError:
            raise
        except (Exception, SystemExit) as error:
            raise DataError(f"{name} of {excerpt(answer)} {_raised(error, self.file)}") from error
        match verdict:
            case bool():
                return RIGHT if verdict else wrong("")
            case (False, str(reason)):
                return wrong(reason)
        raise DataError(
            f"{name} returned {excerpt(verdict)}; expected True, False, or (False, 'why')"
        )


def _function(file: str, name: str) -> Callable[[str, Any], Any]:
    """Return a function of a file, as the file is now.

    Raises:
        EvaluationError: there is no such file or function, or the file raises an error.
    """
    if not Path(file).is_file():
        raise EvaluationError(f"{file}: no such file; expected Python with the function {name}")
    content = _run(file, Path(file).read_bytes())
    function = content.get(name)
    if not callable(function):
        functions = [key for key, value in content.items() if callable(value)]
        raise EvaluationError(f"{file}: no function {name!r}{nearest(name, functions)}")
    return function  # type: ignore[no-any-return]  # a module's attribute


@cache
def _run(file: str, source: bytes) -> dict[str, Any]:
    """Run a file as a module, once for each of its versions, and return its names."""
    module = ModuleType(f"dualign_verifier_{Path(file).stem}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # dataclasses look for it there
    try:
        exec(compile(source, file, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        raise EvaluationError(f"{file} {_raised(error, file)}") from error
    return vars(module)


def _raised(error: BaseException, file: str) -> str:
    """Return what was raised, and at which line of the user's file."""
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno for frame in reversed(frames) if frame.filename == file), None)
    if isinstance(error, SyntaxError):
        line = error.lineno
    place = f" at line {line}" if line else ""
    return f"raised {type(error).__name__}{place}: {error}"
