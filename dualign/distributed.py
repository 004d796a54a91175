"""The processes of a launch: the work of rank 0, and how `dualign run` starts a stage on several."""

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dualign.deepspeed_ops import ops_of_config, prepare_ops
from dualign.launcher import Launch, Machine, launch_command, launch_environment, launch_settings
from dualign.lifetime import LAUNCHER_PID

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")
_LOOK = 0.5  # seconds between two looks at the other machines


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


def gather(value: Any) -> list[Any]:
    """Return the values of all ranks of a launch, in their order, on each of them."""
    from accelerate.utils import gather_object

    _partial_state()
    values: list[Any] = gather_object([value])
    return values


def _partial_state() -> "PartialState":
    """Return accelerate's process group.

    Without `cpu`, the processes of a launch on CPUs don't find each other: each would be rank 0.
    """
    import torch
    from accelerate import PartialState

    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return PartialState(cpu=use_cpu or not torch.accelerator.is_available())


def launch(
    stage_launch: Launch,
    arguments: Sequence[str],
    *,
    machine: Machine | None = None,
    listen: Callable[[], None] = lambda: None,
) -> tuple[str, int]:
    """Run `dualign ARGUMENTS` through accelerate launch; returns the command line and the exit status.

    What DeepSpeed compiles is compiled first, here. If this process is interrupted, the launcher is
    told to stop its processes; if it is killed, they end by themselves (lifetime.py).

    Args:
        machine: this one, of several that launch together.
        listen: called while the launcher runs; what it raises stops the launcher.
    """
    prepare_ops(ops_of_config(launch_settings(stage_launch)))
    command = launch_command(stage_launch, arguments, machine)
    own = {LAUNCHER_PID: str(os.getpid()), **launch_environment(stage_launch, machine)}
    process = subprocess.Popen(command, env={**os.environ, **own})
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = _wait(process, listen)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return " ".join(command), code


def _wait(process: "subprocess.Popen[bytes]", listen: Callable[[], None]) -> int:
    while True:
        try:
            return process.wait(timeout=_LOOK)
        except subprocess.TimeoutExpired:
            listen()


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt
