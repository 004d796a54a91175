"""Processes that tests start, whose end is awaited, and what the workers of a run share."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

LIMIT_SECONDS = 3000
"""Only what hangs takes as long: a machine that others keep busy is some twenty times slower."""


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


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` has filled, once for all workers of this run."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, mark = root / name, root / f"{name}.complete"
    with FileLock(root / f"{name}.lock"):
        if not mark.exists():
            folder.mkdir()
            make(folder)
            mark.touch()
    return folder


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds; what takes as long as something that hangs fails the test."""
    end = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "hung"
        time.sleep(0.02)
