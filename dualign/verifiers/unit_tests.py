"""Run the code of an answer with the row's tests, in a sandbox."""

import ast
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, ClassVar, Literal

from dualign.errors import DataError, EvaluationError, excerpt
from dualign.verifiers.base import RIGHT, Verdict, Verifier, wrong
from dualign.verifiers.fences import last_block
from dualign.verifiers.sandbox import Limits, SandboxError, obstacle, run_python

# Reads the word that proves its end, and the tests, before any of the code runs, which may write
# files of these names; os._exit leaves no threads behind.
_CHECK = """\
import os, sys, types
def check(word):
    module = sys.modules["solution"] = types.ModuleType("solution")
    texts = {}
    for name in ("solution.py", "tests.py"):
        with open(name, encoding="utf-8") as file:
            texts[name] = file.read()
    for name, text in texts.items():
        exec(compile(text, name, "exec"), module.__dict__)
    sys.stdout.flush()
    os.write(1, b"\\n" + word)
    os._exit(0)
check(sys.stdin.buffer.readline())
"""
_QUIET = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Pass),
    *(ast.Assign, ast.AnnAssign, ast.AugAssign),
)
"""Statements that check nothing by themselves."""
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Case:
    """What a program reads, and what it has to write."""

    input: str
    output: str


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitTestsVerifier(Verifier):
    """The answer's Python code, its last code fence or all of it, passes the row's tests."""

    takes_lists: ClassVar[bool] = True
    kind: Literal["unit_tests"] = "unit_tests"
    """this kind of verifier"""
    cpu_seconds: int = 10
    """limit of CPU time of each process, and in each case"""
    wall_seconds: int = 30
    """limit by the clock, in each case"""
    memory_mb: int = 1024
    """limit of each process's memory"""
    processes: int = 4
    """limit of processes and threads"""
    file_mb: int = 16
    """limit of what is written to a file, to all files, or to standard output"""
    sandbox: Literal["full", "limits_only"] = "full"
    """full: no network, no other processes, no files but Python's own and an empty folder, by Linux's
    namespaces; limits_only: the limits above alone, on a machine that can be lost
    """

    def problems(self) -> list[tuple[str, str]]:
        limits = ("cpu_seconds", "wall_seconds", "memory_mb", "processes", "file_mb")
        return [
            (name, f"expected 1 or more, found {getattr(self, name)}")
            for name in limits
            if getattr(self, name) < 1
        ]

    def require(self) -> None:
        reason = obstacle(isolated=self.sandbox == "full")
        if reason and self.sandbox == "full":
            raise EvaluationError(
                "the verifier unit_tests runs code that a model wrote, and this machine can't keep it from "
                f"files and network ({reason}). Let users make namespaces (sysctl "
                "kernel.apparmor_restrict_unprivileged_userns=0 or kernel.unprivileged_userns_clone=1; "
                "for a container: --cap-add SYS_ADMIN --security-opt seccomp=unconfined --security-opt "
                "apparmor=unconfined). Or, on a machine that can be lost: sandbox: limits_only"
            )
        if reason:
            raise EvaluationError(
                f"the verifier unit_tests can't start Python with limits ({reason}). As root it starts it "
                "as another user, who needs to read it: run as a user, or put Python where all may read it"
            )

    def read(self, expected: Any) -> str | tuple[Case, ...]:
        """Return tests as code, or cases of standard input and output."""
        tests = _parsed(expected)
        if isinstance(tests, Mapping) and {"inputs", "outputs"} <= tests.keys():
            if tests.get("fn_name"):
                raise DataError(f"tests of a function ({tests['fn_name']}): write them as asserts")
            tests = _paired(tests["inputs"], tests["outputs"])
        if isinstance(tests, list) and tests and all(isinstance(item, Mapping) for item in tests):
            return tuple(_case(item) for item in tests)
        if isinstance(tests, list) and tests and all(isinstance(item, str) for item in tests):
            tests = "\n".join(tests)
        if not isinstance(tests, str) or not tests.strip():
            raise DataError(
                f"tests {excerpt(expected)}: the verifier unit_tests takes Python code with asserts, a "
                "list of asserts, or a list of {input, output}"
            )
        try:
            tree = ast.parse(tests)
            compile(tests, "tests", "exec")
        except (SyntaxError, ValueError) as error:
            raise DataError(f"tests {excerpt(expected)}: not Python code: {error}") from None
        if not any(map(_can_fail, tree.body)):
            raise DataError(
                f"tests {excerpt(expected)}: no code passes or fails by them, as nothing in them is "
                "asserted or called when they run; write asserts, or call the functions that assert, "
                "such as check(add)"
            )
        return tests

    @property
    def can_vote(self) -> bool:
        """Whole texts pass, which are rarely the same twice."""
        return False

    def judge(self, answer: str, expected: Any) -> Verdict:
        block = last_block(answer)
        code = answer if block is None else block
        if not code.strip():
            return wrong("no code")
        try:
            if isinstance(expected, str):
                return self._judge_asserts(code, expected)
            verdicts = (self._judge_case(code, case) for case in expected)
            return next((verdict for verdict in verdicts if not verdict), RIGHT)
        except SandboxError as error:
            raise EvaluationError(f"the sandbox of unit_tests failed: {error}") from None

    def _judge_asserts(self, code: str, tests: str) -> Verdict:
        word = secrets.token_hex(16)
        files = {"solution.py": code, "tests.py": tests, "check.py": _CHECK}
        outcome = run_python(files, "check.py", word, self._limits, isolated=self._isolated)
        if outcome.reason:
            return wrong("a test fails" if outcome.reason == "AssertionError" else outcome.reason)
        return (
            RIGHT if outcome.stdout.endswith("\n" + word) else wrong("exit before the tests' end")
        )

    def _judge_case(self, code: str, case: Case) -> Verdict:
        outcome = run_python(
            {"solution.py": code}, "solution.py", case.input, self._limits, isolated=self._isolated
        )
        if outcome.reason:
            return wrong(outcome.reason)
        return RIGHT if _same(outcome.stdout, case.output) else wrong("wrong output")

    @property
    def _isolated(self) -> bool:
        return self.sandbox == "full"

    @property
    def _limits(self) -> Limits:
        return Limits(
            cpu_seconds=self.cpu_seconds,
            wall_seconds=self.wall_seconds,
            memory_mb=self.memory_mb,
            processes=self.processes,
            file_mb=self.file_mb,
        )


def _can_fail(statement: ast.stmt) -> bool:
    """Return whether a statement may check something: a definition that nobody calls checks nothing,
    a comparison without assert neither; the tests run under another name than `__main__`, where
    unittest.main finds none of them.
    """
    if isinstance(statement, ast.If) and "__name__" in ast.dump(statement.test):
        return any(map(_can_fail, statement.orelse))
    if isinstance(statement, ast.Expr):
        value = statement.value
        if isinstance(value, ast.BoolOp):  # add(1, 2) == 3 or exit(1)
            value = value.values[-1]
        calls = any(isinstance(node, ast.Call) for node in ast.walk(value))
        is_main = isinstance(value, ast.Call) and ast.unparse(value.func) == "unittest.main"
        return calls and not is_main and not isinstance(value, ast.Compare)
    return not isinstance(statement, _QUIET)


def _parsed(expected: Any) -> Any:
    """Return tests that are JSON as text, as LiveCodeBench's public_test_cases are."""
    if isinstance(expected, str) and expected.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(expected)
        except ValueError:
            return expected
    return expected


def _paired(inputs: Any, outputs: Any) -> list[dict[str, Any]]:
    if not (isinstance(inputs, list) and isinstance(outputs, list) and len(inputs) == len(outputs)):
        raise DataError("tests: expected lists of as many inputs as outputs")
    return [{"input": text, "output": output} for text, output in zip(inputs, outputs, strict=True)]


def _case(item: Mapping[str, Any]) -> Case:
    kind = item.get("testtype", "stdin")
    if kind != "stdin":
        raise DataError(f"a test of type {kind!r}: the verifier unit_tests takes stdin, or asserts")
    texts = [item.get(key) for key in ("input", "output")]
    if not all(isinstance(text, str | int | float) for text in texts):
        raise DataError(f"a test {excerpt(dict(item))}: expected {{input, output}} as text")
    return Case(*map(str, texts))


def _same(written: str, expected: str) -> bool:
    """Return whether two outputs agree, but for blanks at the ends of lines and forms of numbers."""
    lines, wanted = (
        [line.strip() for line in text.strip().splitlines()] for text in (written, expected)
    )
    return len(lines) == len(wanted) and all(
        line == other or _numbers(line) == _numbers(other) is not None
        for line, other in zip(lines, wanted, strict=True)
    )


def _numbers(line: str) -> list[Decimal] | None:
    """Return the numbers of a line; None if it has other words, too."""
    words = line.split()
    if not all(map(_NUMBER.fullmatch, words)):  # Decimal reads sNaN, too, and can't compare it
        return None
    try:
        return [Decimal(word) for word in words]
    except InvalidOperation:  # an exponent that is too large
        return None
