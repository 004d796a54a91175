"""The processes of a launch: the work of rank 0, and how `dualign run` starts a stage on several."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")
LAUNCHER_PID = "DUALIGN_LAUNCHER_PID"
"""Environment variable of a launched stage: the process id of the `dualign run` that launched it."""


def is_main_process() -> bool:
    """Return True for rank 0 of a launch, and without a launcher."""
    return int(os.environ.get("RANK", "0")) == 0


def run_on_main_process(action: Callable[[], T]) -> T | None:
    """Call `action` on rank 0 while the others wait; returns its result there, None elsewhere."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # no launcher
        return action()
    result = action() if is_main_process() else None
    _partial_state().wait_for_everyone()
    return result


def _partial_state() -> "PartialState":
    """Return accelerate's process group.

    Without `cpu`, the processes of a launch on CPUs don't find each other: each would be rank 0.
    """
    import torch
    from accelerate import PartialState

    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return PartialState(cpu=use_cpu or not torch.accelerator.is_available())


def launch(config_file: str, arguments: Sequence[str]) -> tuple[str, int]:
    """Run `dualign ARGUMENTS` through accelerate launch; returns the command line and the exit status.

    If this process is interrupted, the launcher is told to stop its processes: they are in sessions
    of their own and would continue without it.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config_file]
    command += ["-m", "dualign", *arguments]
    process = subprocess.Popen(command, env={**os.environ, LAUNCHER_PID: str(os.getpid())})
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return " ".join(command), code


def exit_with_process(pid: int) -> None:
    """Exit soon after process `pid` has ended, however it ended.

    The processes of a launch are in sessions of their own. After kill -9, `dualign run` can't stop
    them, and they would keep the output locked until they finish.
    """
    threading.Thread(target=_watch, args=(pid,), daemon=True).start()


def _watch(pid: int) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        watched = psutil.Process(pid)
        while watched.is_running() and watched.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.2)
    os._exit(1)


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt
