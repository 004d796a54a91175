"""The processes of a launch: what the first does alone, and how `dualign run` starts a stage on several."""

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
HELD = "DUALIGN_OUTPUT_HELD"  # set for a stage that `dualign run` starts through a launcher


def process_count() -> int:
    """How many processes the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is rank 0 of its launch, or alone."""
    return int(os.environ.get("RANK", "0")) == 0


def on_first(action: Callable[[], T]) -> T | None:
    """What `action` returns, done by rank 0 while the others wait; None on the others."""
    if process_count() == 1:
        return action()
    result = action() if is_first() else None
    _state().wait_for_everyone()
    return result


def _state() -> "PartialState":
    """Without `cpu` the processes of a launch on CPUs don't find each other: each would be the first, and wait for none."""
    import torch
    from accelerate import PartialState

    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return PartialState(cpu=asked or not torch.accelerator.is_available())


def launch(config_file: str, arguments: Sequence[str]) -> tuple[str, int]:
    """Run `dualign ARGUMENTS` through accelerate launch; the command as text, and its exit status.

    When this process is interrupted the launcher is asked to stop its processes, which are in sessions of their own
    and would go on without it.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config_file]
    command += ["-m", "dualign", *arguments]
    process = subprocess.Popen(command, env={**os.environ, HELD: str(os.getpid())})
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


def stop_with(pid: int) -> None:
    """End this process soon after process `pid` has ended, however it did.

    The processes of a launch are in sessions of their own: killed with kill -9, `dualign run` couldn't stop them, and
    they would hold the output until they were done.
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
