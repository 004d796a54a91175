"""Programs that a model wrote, run with limits and shut off from files, processes and network.

Linux keeps what is promised by namespaces, which need no root where the system allows them to users.
Whether this machine does is found out by trying (`obstacle`). `jail.py` is what runs in the child.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_JAIL = Path(__file__).with_name("jail.py")
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    # A thread counts as a process.
    **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")},
}
_GRACE_SECONDS = 60  # beyond the limit of wall time, for a machine that swaps


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a program may use; CPU time and memory count for each of its processes."""

    cpu_seconds: int
    wall_seconds: int
    memory_mb: int
    processes: int
    file_mb: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a program wrote, and why it didn't end well; `reason` is empty if it did."""

    stdout: str
    reason: str


class SandboxError(Exception):
    """The sandbox couldn't be built; the text says which call the system refused."""


def run_python(
    files: Mapping[str, str], script: str, stdin: str, limits: Limits, *, isolated: bool
) -> Outcome:
    """Run a script among `files` in a folder of its own.

    Args:
        isolated: False keeps the limits alone: files and network are the user's.

    Raises:
        SandboxError: this machine can't build the sandbox.
    """
    with tempfile.TemporaryDirectory(prefix="dualign-sandbox-") as name:
        folder = Path(name)
        for sub in ("root", "work"):
            (folder / sub).mkdir()
        if os.geteuid() == 0 and not isolated:
            folder.chmod(0o711)  # root's programs run as another user
        (folder / "status").touch()
        settings = {
            "isolated": isolated,
            "visible": _visible() if isolated else [],
            "root": str(folder / "root"),
            "work": str(folder / "work"),
            "status": str(folder / "status"),
            "files": dict(files),
            "command": [sys.executable, "-s", "-P", "-B", script],
            "environment": _ENVIRONMENT,
            "cpu_seconds": limits.cpu_seconds,
            "wall_seconds": limits.wall_seconds,
            "memory": limits.memory_mb << 20,
            "file_bytes": limits.file_mb << 20,
            "processes": limits.processes,
        }
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        (folder / "stdin").write_text(stdin, encoding="utf-8", errors="replace")
        # What is shut in can't stop its keeper, which knows the limit.
        _start(folder, None if isolated else limits.wall_seconds + _GRACE_SECONDS)
        return _outcome(folder, limits)


def _start(folder: Path, seconds: int | None) -> None:
    """Run the jail until nothing of it is left."""
    with (
        (folder / "stdin").open("rb") as stdin,
        (folder / "stdout").open("wb") as stdout,
        (folder / "stderr").open("wb") as stderr,
    ):
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_JAIL), str(folder / "settings.json")],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={},
            start_new_session=True,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass  # the status has no word of an end
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _outcome(folder: Path, limits: Limits) -> Outcome:
    events: dict[str, Any] = {}
    for line in (folder / "status").read_text(encoding="utf-8").splitlines():
        events |= json.loads(line)
    if "error" in events:
        raise SandboxError(events["error"])
    stdout, stderr = (
        (folder / name).read_bytes().decode("utf-8", "replace") for name in ("stdout", "stderr")
    )
    size = max((folder / name).stat().st_size for name in ("stdout", "stderr"))
    if size >= limits.file_mb << 20:
        reason = "too much output"
    elif "ended" in events:
        reason = _reason(os.waitstatus_to_exitcode(events["ended"]), stderr)
    else:
        reason = "timeout" if "timeout" in events else "sandbox ended"
    return Outcome(stdout=stdout, reason=reason)


def _reason(code: int, stderr: str) -> str:
    """Return why a program ended with `code`, in words that can be counted."""
    if code == 0:
        return ""
    if code < 0:
        number = -code
        if number == signal.SIGXCPU:
            return "CPU time"
        names = {item.value: item.name for item in signal.Signals}
        return names.get(number, f"signal {number}")  # most real-time signals have no name
    lines = stderr.strip().splitlines()
    error = re.match(
        r"([A-Za-z_][\w.]*)(?:: (?:\[Errno \d+\] )?([^:]*))?", lines[-1] if lines else ""
    )
    if error is None:
        return f"exit code {code}"
    name, text = error[1], (error[2] or "").strip()
    if name == "MemoryError":
        return "memory"
    if name == "BlockingIOError" or text == "can't start new thread":
        return "too many processes"
    return text if name.endswith(("OSError", "PermissionError")) and text else name


@cache
def _visible() -> list[tuple[str, str]]:
    """Return what a program sees besides its folder, as (where it is, as what): Python, read-only."""
    paths = [*_LIBRARIES, sys.base_prefix, sys.base_exec_prefix, sys.prefix]
    link = Path(sys.executable)
    while link.is_symlink():
        paths.append(str(link))
        link = link.parent / link.readlink()
    paths.append(str(link))
    pairs = {path: os.path.realpath(path) for path in paths}
    pairs |= {real: real for real in pairs.values()}
    return [(real, path) for path, real in sorted(pairs.items(), key=lambda pair: len(pair[0]))]


@cache
def obstacle(*, isolated: bool) -> str:
    """Return why this machine can't run a program in the sandbox; empty if it can. Tries it once."""
    if isolated and sys.platform != "linux":
        return f"{sys.platform} has no namespaces"
    limits = Limits(cpu_seconds=30, wall_seconds=60, memory_mb=1024, processes=2, file_mb=1)
    try:
        outcome = run_python({"try.py": "print('works')"}, "try.py", "", limits, isolated=isolated)
    except SandboxError as error:
        return str(error)
    return outcome.reason if outcome.stdout != "works\n" else ""
