"""Code that passes its tests, and code that has to be stopped."""

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest

from dualign.errors import DataError, EvaluationError
from dualign.verifiers.sandbox import Limits, obstacle, run_python
from dualign.verifiers.table import verify
from dualign.verifiers.unit_tests import UnitTestsVerifier

ROOT = Path(__file__).parents[2]
CANT_SHUT_IN = obstacle(isolated=True)
shut_in = pytest.mark.skipif(bool(CANT_SHUT_IN), reason=f"no namespaces here: {CANT_SHUT_IN}")
LIMITS = Limits(cpu_seconds=1, wall_seconds=20, memory_mb=512, processes=4, file_mb=1)
ADD = "Sure:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."
SQUARE = "```python\nprint(int(input()) ** 2)\n```"


@shut_in
@pytest.mark.parametrize(
    ("answer", "tests", "reason"),
    [
        (ADD, "assert add(1, 2) == 3", ""),
        (ADD, ["assert add(1, 2) == 3", "assert add(1, 2) == 4"], "a test fails"),
        ("def add(a, b): return a + b", ["assert add(1, 2) == 3"], ""),
        ("I can't do that.", "assert True", "SyntaxError"),
        ("```\n```", "assert True", "no code"),
        ("", "assert True", "no code"),
        ("```\nimport os; os._exit(0)\n```", "assert False", "exit before the tests' end"),
        ("```\nraise SystemExit\n```", "assert False", "exit before the tests' end"),
        ("```\nx = 1\n```", "assert y", "NameError"),
        (SQUARE, [{"input": "3\n", "output": "9\n"}, {"input": "4", "output": "16.0"}], ""),
        (SQUARE, '[{"input": "3", "output": "8", "testtype": "stdin"}]', "wrong output"),
        (SQUARE, {"inputs": ["3", ""], "outputs": ["9", "0"]}, "EOFError"),
        ("```\nprint('sNaN')\n```", [{"input": "", "output": "1"}], "wrong output"),
        ("```\nprint('1_0')\n```", [{"input": "", "output": "10"}], "wrong output"),
        ("```\nopen('tests.py', 'w').close()\n```", "assert False", "a test fails"),
        (
            "def add(a, b): return a",
            "def check(f): assert f(1, 2) == 3\ncheck(add)",
            "a test fails",
        ),
    ],
)
def test_code_is_right_if_its_tests_pass(answer, tests, reason):
    verdict = verify("unit_tests", answer, tests)
    assert (verdict.right, verdict.reason) == (not reason, reason)


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ([{"input": "3", "output": "9", "testtype": "functional"}], "type 'functional'"),
        ([{"input": "3"}], "expected .input, output. as text"),
        ({"inputs": ["3"], "outputs": []}, "as many inputs as outputs"),
        (
            {"inputs": ["3"], "outputs": ["9"], "fn_name": "square"},
            "square.: write them as asserts",
        ),
        ("assert (", "not Python code"),
        ([], "takes Python code with asserts"),
        ({"a": 1}, "takes Python code with asserts"),
        # As HumanEval's and pytest's are: any code would pass.
        ("META = {}\ndef check(f):\n    assert f(1) == 1", "nothing in them is asserted or called"),
        ("class Test:\n    def test(self): assert add(1, 2) == 3", "nothing in them is asserted"),
        ("if __name__ == '__main__':\n    assert add(1, 2) == 3", "nothing in them is asserted"),
        (["add(1, 2) == 3"], "nothing in them is asserted"),
        # No code would pass: it looks for them in another module.
        ("import unittest\nclass T(unittest.TestCase): pass\nunittest.main()", "nothing in them"),
    ],
)
def test_tests_that_cant_be_read_are_refused(tests, message):
    with pytest.raises(DataError, match=message):
        UnitTestsVerifier().read(tests)


@pytest.mark.parametrize(
    "tests", ["add(1, 2) == 3 or exit(1)", "if add(1, 2) != 3: raise ValueError", "check(add)"]
)
def test_tests_may_fail_in_other_ways_than_by_assert(tests):
    assert UnitTestsVerifier().read(tests) == tests


def outcome(code, **limits):
    """What comes of a program, with other limits if some are named."""
    merged = {name: getattr(LIMITS, name) for name in Limits.__dataclass_fields__} | limits
    return run_python({"code.py": code}, "code.py", "", Limits(**merged), isolated=True)


@shut_in
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os\nwhile True: os.fork()", "too many processes"),
        ("while True: pass", "CPU time"),
        ("x = bytearray(10 << 30)", "memory"),
        ("while True: print('x' * 1000)", "too much output"),
        ("open('/tmp/x', 'wb').write(b'x' * (2 << 20))", "No space left on device"),
        ("open('/etc/passwd').read()", "FileNotFoundError"),
        (f"open({str(ROOT / 'pyproject.toml')!r})", "FileNotFoundError"),
        ("import sys; open(sys.base_prefix + '/x', 'w')", "Read-only file system"),
        ("open('/x', 'w')", "Read-only file system"),
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "Network is unreachable"),
        ("import socket; socket.create_connection(('192.0.2.1', 80))", "Network is unreachable"),
        ("import os; os.abort()", "SIGABRT"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("import os; os.kill(os.getpid(), 40)", "signal 40"),
    ],
)
def test_what_harms_is_stopped_with_a_word(code, reason):
    assert outcome(code).reason == reason


@shut_in
def test_a_program_that_waits_or_forks_for_ever_ends_by_the_clock():
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    for code in ("import time; time.sleep(1000)", bomb):
        assert outcome(code, cpu_seconds=30, wall_seconds=1).reason == "timeout"


@shut_in
def test_no_process_outlives_the_program():
    name = f"sleeper-{uuid.uuid4()}"
    child = f"import os, time; os.setsid(); time.sleep(1000)  # {name}"
    code = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print('started')\n"
    )
    assert outcome(code).stdout == "started\n"
    assert outcome(code + "time.sleep(1000)", wall_seconds=1).reason == "timeout"
    assert not [p for p in psutil.process_iter(["cmdline"]) if name in str(p.info["cmdline"])]


@shut_in
def test_the_program_cant_end_its_parents_or_become_root():
    code = (
        "import os\n"
        "for pid in (os.getppid(), 1, -1):\n"
        "    try: os.kill(pid, 9)\n"
        "    except OSError: pass\n"
        "try: os.setuid(0)\n"
        "except OSError: pass\n"
        "print(os.getuid() != 0, sorted(os.listdir('.')))\n"
    )
    assert outcome(code) == run_python({"code.py": code}, "code.py", "", LIMITS, isolated=True)
    assert outcome(code).stdout == "True ['code.py']\n"


@shut_in
def test_the_keeper_is_in_no_process_group_of_the_program():
    code = "import os; print(os.getpgid(0), os.getsid(0))"  # 0: a group outside
    assert outcome(code).stdout == "1 1\n"


@shut_in
def test_the_environment_of_the_user_stays_outside(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert "secret" not in outcome("import os; print(dict(os.environ))").stdout


@shut_in
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs util-linux")
def test_a_machine_that_cant_shut_in_is_refused_with_what_to_change():
    """In a user namespace that may make no mount namespace, as in a container without rights."""
    code = (
        "from dualign.verifiers.unit_tests import UnitTestsVerifier\n"
        "from dualign.errors import EvaluationError\n"
        "try: UnitTestsVerifier().require()\n"
        "except EvaluationError as error: print(error)\n"
    )
    script = 'echo 0 > /proc/sys/user/max_mnt_namespaces && exec "$0" -c "$1"'
    result = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", script, sys.executable, code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if result.returncode:
        pytest.skip(f"no user namespace with a limit: {result.stderr}")
    assert "can't keep it from files and network (unshare: No space left" in result.stdout
    assert "--cap-add SYS_ADMIN" in result.stdout and "sandbox: limits_only" in result.stdout


def test_limits_alone_are_kept_if_the_task_says_so():
    verifier = UnitTestsVerifier(sandbox="limits_only", cpu_seconds=1, memory_mb=512, file_mb=1)
    if reason := obstacle(isolated=False):
        with pytest.raises(EvaluationError, match=f"{reason}.*put Python where all may read it"):
            verifier.require()
        return
    assert verify(verifier, ADD, "assert add(1, 2) == 3")
    words = {
        "while True: pass": "CPU time",
        "x = bytearray(10 << 30)": "memory",
        "import os\nwhile True: os.fork()": "too many processes",
        "while True: print('x' * 1000)": "too much output",
    }
    assert {code: verify(verifier, code, "pass").reason for code in words} == words
