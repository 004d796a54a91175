"""Processes that tests start: their end is awaited, and when one hangs all that it started ends with it."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

LIMIT_SECONDS = 600  # only what hangs takes as long


def start(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[str]:
    """A process in a session of its own, with both outputs in one pipe."""
    return subprocess.Popen(
        command,
        env=env,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Its output; a process that fails or hangs fails the test.

    The workers of a launch are in sessions of their own and hold the pipe: they are ended by name.
    """
    try:
        output, _ = process.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        tree = [*psutil.Process(process.pid).children(recursive=True), process]
        for member in tree:
            member.kill()
        raise AssertionError(f"hung: {process.communicate()[0][-5000:]}") from None
    assert process.returncode == 0, output[-5000:]
    return output
