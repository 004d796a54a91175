"""How long a process lives: a rank ends with its launcher, and takes what it started along.

The processes of a launch are in sessions of their own: after kill -9 of the launcher nobody tells
them to stop, and they would keep the output locked, and the processors busy, until a time-out.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import psutil

LAUNCHER_PID = "DUALIGN_LAUNCHER_PID"
"""Environment variable of a launched stage: the process id of the `dualign run` that launched it."""
NO_PROGRESS = "no progress"
"""how the error of a rank that hangs begins"""
_SECONDS = 0.2  # between two looks at the launcher
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LAUNCHERS = re.compile(
    r"(.*/)?(accelerate|accelerate-launch|torchrun|deepspeed)$|(accelerate|torch\.distributed|deepspeed)\.|"
    r"dualign\.first_failure$"
)
"""One of the first words of a launcher's command line: its script, or the module that Python runs."""


def end_with_launcher() -> None:
    """End this rank soon after its launcher has, however that ended and whatever this rank waits for.

    The launcher is the parent process (`accelerate launch`, `torchrun`) and the `dualign run` that
    started it. Without a launcher nothing happens: a process that outlives its shell is wanted.
    """
    pids = [int(os.environ[LAUNCHER_PID])] if LAUNCHER_PID in os.environ else []
    parent = _launching_parent()
    if parent is not None:
        _end_with_parent_in_kernel()
        pids.append(parent)
    if pids:
        end_with(*pids)


def is_rank() -> bool:
    """Return whether torchrun started this process, by itself or for accelerate."""
    return "TORCHELASTIC_ERROR_FILE" in os.environ


def fail_as_rank(error: BaseException, code: int) -> None:
    """End a rank of torchrun with an error, and leave the error where the launcher looks for it.

    It ends without clean-up: communicators that other ranks are waiting in would be waited for. In
    a process that is no rank nothing happens.
    """
    if not is_rank():
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def leave_error(text: str, local_rank: int) -> None:
    """Leave the error of a rank of this machine where its launcher looks for it, in torchrun's form."""
    if is_rank():
        file = (
            Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parents[1] / str(local_rank) / "error.json"
        )
        more = {"py_callstack": text, "timestamp": str(int(time.time()))}
        error = {"message": {"message": text, "extraInfo": more}}
        file.write_text(json.dumps(error), encoding="utf-8")


def end_with(*pids: int) -> None:
    """End this process and all that it started, soon after one of the processes `pids` has ended."""
    processes = [_process(pid) for pid in pids]
    threading.Thread(target=_watch, args=(processes,), daemon=True).start()


def kill_tree(pid: int) -> None:
    """Kill a process and all that it started; a process that has ended already is fine."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        # What is stopped can't start more while its children are looked up.
        for member in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                member.suspend()
        for member in (*process.children(recursive=True), process):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                member.kill()


def _launching_parent() -> int | None:
    """Return the process id of the launcher that this process is a child of; None without one.

    A rank whose launcher ended before this look is the child of init by now, and ends here.
    """
    import psutil

    pid = os.getppid()
    try:
        command = psutil.Process(pid).cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        command = []
    is_python = bool(command) and "python" in command[0].rpartition("/")[2]
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torch starts ranks from Python, whatever its script
        return pid if is_python else _end("its launcher")
    return pid if is_python and any(map(_LAUNCHERS.match, command[1:5])) else None


def _end_with_parent_in_kernel() -> None:
    """Let Linux kill this process when its parent ends.

    A rank that waits inside of native code may hold the interpreter's lock, so that no thread of
    Python would notice.
    """
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _process(pid: int) -> "psutil.Process | None":
    import psutil

    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid)
    return None


def _watch(processes: "list[psutil.Process | None]") -> None:
    while all(map(_lives, processes)):
        time.sleep(_SECONDS)
    _end("the process that started it")


def _lives(process: "psutil.Process | None") -> bool:
    import psutil

    with suppress(psutil.NoSuchProcess):
        # A zombie has ended, and its parent hasn't asked for its status yet.
        return (
            process is not None
            and process.is_running()
            and process.status() != psutil.STATUS_ZOMBIE
        )
    return False


def _end(missing: str) -> NoReturn:
    """Kill what this process started, then end it without clean-up: nobody waits for that."""
    with suppress(OSError):  # the launcher's end of a pipe is gone as well
        os.write(2, f"process {os.getpid()}: {missing} has ended, so this one ends too\n".encode())
    import psutil

    for child in psutil.Process().children(recursive=False):
        kill_tree(child.pid)
    os._exit(1)
