"""Processes that tests start, whose end is awaited, and what the workers of a run share."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

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


def build_deepspeed() -> None:
    """Compile DeepSpeed's part for CPUs before a launch needs it, once per machine.

    A process that is killed while it compiles leaves a lock behind, at which every later launch waits for ever.
    """
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "dualign-tests.lock"):
        compiled = list(root.rglob("deepspeed_shm_comm*.so"))
        for lock in root.rglob("deepspeed_shm_comm/lock"):
            if not compiled or time.time() - lock.stat().st_mtime > LIMIT_SECONDS:
                lock.unlink()
        if not compiled:
            code = "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as builder; builder().load()"
            environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
            finish(start([sys.executable, "-c", code], env=environment))
