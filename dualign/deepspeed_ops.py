"""DeepSpeed's compiled ops: made once, before the ranks of a launch need them.

DeepSpeed compiles an op when a rank first asks for it, through torch's extension builder. That keeps
a lock file while it compiles; if it is killed meanwhile, the file stays, and whoever comes next waits
for ever without a word. So ops are compiled here, in a folder of ours, by one process that all others
wait for at a lock of the kernel's; and lock files that no process holds are removed.
"""

import hashlib
import logging
import os
import platform
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dualign.errors import CheckpointError
from dualign.lifetime import end_with, kill_tree
from dualign.rundir import cache_folder, locked

logger = logging.getLogger(__name__)
EXTENSIONS_DIR = "TORCH_EXTENSIONS_DIR"
"""torch's environment variable of the folder that it compiles in."""
_SHARED_MEMORY = "ShareMemCommBuilder"  # collectives between the processes of a machine, on CPUs
_CPU_ADAM = "CPUAdamBuilder"  # AdamW in the memory of the host
_LIMIT_SECONDS = 3600  # a minute is usual; many processes on few cores take longer
_LOG = "build.log"
_NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "wekafs", "panfs", "fuse.")
_LOCK = "build"


def ops_of_config(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the builders of the ops that a launch by this accelerate config asks for."""
    if str(settings.get("distributed_type", "")).upper() != "DEEPSPEED":
        return ()
    deepspeed = settings.get("deepspeed_config") or {}
    return _ops(deepspeed.get("offload_optimizer_device"), deepspeed.get("deepspeed_config_file"))


def ops_of_environment(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the builders of the ops that this rank of a launch will ask for."""
    if environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() not in ("1", "true", "yes"):
        return ()
    prefix = "ACCELERATE_DEEPSPEED_"
    return _ops(
        environment.get(f"{prefix}OFFLOAD_OPTIMIZER_DEVICE"),
        environment.get(f"{prefix}CONFIG_FILE"),
    )


def _ops(offload: str | None, config_file: str | None) -> tuple[str, ...]:
    text = ""
    if config_file and Path(config_file).is_file():
        text = Path(config_file).read_text(encoding="utf-8", errors="replace")
    on_host = offload in ("cpu", "nvme") or '"offload_optimizer"' in text
    return (_SHARED_MEMORY, _CPU_ADAM) if on_host else (_SHARED_MEMORY,)


def prepare_ops(builders: Sequence[str]) -> None:
    """Compile these ops of DeepSpeed where they are missing, and clear the way to them.

    Processes that come here at the same time wait for the first. Sets $TORCH_EXTENSIONS_DIR, which
    processes started later inherit.

    Args:
        builders: names of DeepSpeed's builders, such as `ShareMemCommBuilder`.

    Raises:
        CheckpointError: an op can't be compiled, or not in time.
    """
    if not builders:
        return
    if not _installed("deepspeed"):
        raise CheckpointError(
            "the launcher's config asks for DeepSpeed, which isn't installed: "
            "pip install 'dualign[deepspeed]', or launch with recipes/accelerate/fsdp2.yaml"
        )
    folder = _folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: DeepSpeed's ops can't be compiled there ({error.strerror}); "
            f"set {EXTENSIONS_DIR} to a folder that can be written"
        ) from None
    os.environ[EXTENSIONS_DIR] = str(folder)
    # ninja may stand beside a Python whose environment isn't activated.
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}{os.pathsep}{sysconfig.get_path('scripts')}"
    if _missing(folder, builders) or any(_lock_files(folder)):
        _wait_for_others(folder)
        with locked(folder, _LOCK, wait=_LIMIT_SECONDS, remedy=_remedy(folder)):
            remove_stale_locks(folder)
            if missing := _missing(folder, builders):
                _compile(folder, missing)
    # A rank of another launch may be killed later, while it loads an op.
    threading.Thread(target=_keep_clear, args=(folder,), daemon=True).start()


def _folder() -> Path:
    """Return the folder of this machine's ops: $TORCH_EXTENSIONS_DIR, else one in our cache.

    In a network folder each host has one of its own: whether a process of another host holds a lock
    file can't be seen.
    """
    stated = os.environ.get(EXTENSIONS_DIR)
    folder = Path(stated).expanduser() if stated else cache_folder() / "torch_extensions" / _key()
    host = socket.gethostname()
    if folder.name == host or not on_network(folder, _mounts()):
        return folder
    return folder / host


def on_network(folder: Path, mounts: Sequence[tuple[str, str, str]]) -> bool:
    """Return whether other hosts may see a folder, by the (device, mount point, type) it lies on."""
    place = folder.absolute()
    above = [mount for mount in mounts if place.is_relative_to(mount[1])]
    if not above:
        return False
    device, _, kind = max(above, key=lambda mount: len(mount[1]))
    return ":" in device or device.startswith("//") or kind.startswith(_NETWORK)


def _mounts() -> list[tuple[str, str, str]]:
    import psutil

    with suppress(OSError):
        return [
            (part.device, part.mountpoint, part.fstype) for part in psutil.disk_partitions(True)
        ]
    return []


def _key() -> str:
    """Return a name for all that an op depends on: versions, and the processor that it is made for."""
    names = ("torch", "deepspeed")
    versions = [f"{name}{version(name)}" for name in names if _installed(name)]
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    device = (
        os.environ.get("DS_ACCELERATOR"),
        os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"),
    )
    digest = hashlib.sha256(repr((_processor(), device)).encode()).hexdigest()[:8]
    return "-".join((python, *versions, digest)).replace("+", "-")


def _processor() -> str:
    """Return what the compiler knows of this processor: its instruction sets."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = ("flags", "Features", "isa")
        return next(line for line in (*lines, "") if line.startswith(names) or not line)
    return platform.processor()


def _installed(package: str) -> bool:
    with suppress(PackageNotFoundError):
        return bool(version(package))
    return False


def _missing(folder: Path, builders: Sequence[str]) -> list[str]:
    return [builder for builder in builders if not _mark(folder, builder).exists()]


def _mark(folder: Path, builder: str) -> Path:
    """Return the file that says that the op is there, or that DeepSpeed has none for this machine."""
    return folder / f".{builder}-{_key()}"


def _remedy(folder: Path) -> str:
    return f"delete {folder}"


def _wait_for_others(folder: Path) -> None:
    """Say who is waited for, if someone compiles."""
    try:
        with locked(folder, _LOCK):
            return
    except CheckpointError:
        logger.info("waiting for another process that compiles DeepSpeed's ops in %s", folder)


def _compile(folder: Path, builders: Sequence[str]) -> None:
    """Compile in a process of its own, which ends with this one and has a limit of time."""
    log = folder / _LOG
    command = [sys.executable, "-m", "dualign.deepspeed_ops", str(os.getpid()), str(log), *builders]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    timer = threading.Timer(_LIMIT_SECONDS, kill_tree, (process.pid,))
    timer.daemon = True
    timer.start()
    assert process.stdout is not None
    try:
        for line in process.stdout:
            logger.info("%s", line.rstrip("\n"))
        code = process.wait()
    finally:
        timer.cancel()
        kill_tree(process.pid)
    if code:
        raise CheckpointError(_failure(log, code))
    for builder in builders:
        _mark(folder, builder).touch()


def _failure(log: Path, code: int) -> str:
    minutes = _LIMIT_SECONDS // 60
    killed = f"it was killed, or took longer than {minutes} minutes"
    cause = killed if code < 0 else f"exit status {code}"
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        telling = [line for line in lines if "error" in line.lower()] or lines
        cause = f"{cause}: {telling[-1].strip()[:300]}" if telling else cause
    return (
        f"DeepSpeed's ops can't be compiled ({cause}); the compiler's output is in {log}. It needs a C++ "
        "compiler (g++) and ninja (pip install ninja); recipes/accelerate/fsdp2.yaml launches without DeepSpeed"
    )


def _lock_files(folder: Path) -> list[Path]:
    """Return the lock files of torch's extension builder: one in each op's folder."""
    return sorted(folder.glob("*/lock"))


def remove_stale_locks(folder: Path, *, seconds: float = 3.0) -> None:
    """Remove lock files that no process holds, and wait for those that one does.

    Torch keeps the file open as long as it holds the lock. A file that has stayed the same for some
    seconds and isn't open anywhere is stale: between closing and removing it there are microseconds.
    """
    for lock in _lock_files(folder):
        deadline = time.monotonic() + _LIMIT_SECONDS
        unheld = (_inode(lock), time.monotonic())
        while lock.exists() and time.monotonic() < deadline:
            if _is_open(lock) or unheld[0] != _inode(lock):
                unheld = (_inode(lock), time.monotonic())
            elif time.monotonic() - unheld[1] >= seconds:
                logger.info("removing %s: the process that made it was killed", lock)
                lock.unlink(missing_ok=True)
            time.sleep(min(1.0, seconds / 3))


def _inode(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_ino
    return None


def _is_open(path: Path) -> bool:
    """Return whether a process of this machine that we may look into has the file open."""
    import psutil

    name = str(path.resolve())
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if any(file.path == name for file in process.open_files()):
                return True
    return False


def _keep_clear(folder: Path) -> None:
    while True:
        time.sleep(2)
        with suppress(OSError):
            remove_stale_locks(folder)


def _main(parent: str, log: str, *builders: str) -> int:
    """Compile ops; what is printed on the real stdout is said to the user."""
    end_with(int(parent))
    user = os.fdopen(os.dup(1), "w", encoding="utf-8")
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops import __compatible_ops__

    for name in builders:
        builder = get_accelerator().create_op_builder(name)
        # The same question as DeepSpeed's own: without this op it does without, or says so.
        if builder is None or not __compatible_ops__.get(builder.NAME, False):
            continue
        print(
            f"compiling DeepSpeed's op {builder.NAME} once for this machine: a minute or two, "
            f"given up after {_LIMIT_SECONDS // 60}",
            file=user,
            flush=True,
        )
        builder.load(verbose=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(_main(*sys.argv[1:]))
