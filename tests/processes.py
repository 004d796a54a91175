"""Processes that tests start, whose end is awaited, and what the workers of a run share."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
import yaml
from filelock import FileLock

from dualign.cli.main import main
from dualign.lifetime import end_with, kill_tree
from dualign.machines import free_port


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
    """Its output; a process that fails fails the test, and one that hangs until the test's limit is killed."""
    try:
        output, _ = process.communicate()
    except BaseException:
        kill_tree(process.pid)
        print(process.communicate()[0][-5000:])
        raise
    assert process.returncode == 0, output[-5000:]
    return output


_PRELOADED = multiprocessing.get_context("forkserver")
_PRELOADED.set_forkserver_preload(["dualign.sft.train", "dualign.preference.train"])


class Fork:
    """`dualign ARGUMENTS` in a session of its own, forked from a process that has the libraries.

    Importing them takes longer than to train a tiny model. With `launcher`, a config of accelerate,
    the command is that of `accelerate launch`, whose ranks are forks as well.
    """

    def __init__(self, *arguments: str, log: Path, launcher: Path | None = None) -> None:
        self.log = log
        command = (arguments, log, launcher, os.getpid())
        self._process: BaseProcess = _PRELOADED.Process(target=_run, args=command)
        self._process.start()

    def runs(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """kill -9 of it and all that it started."""
        assert self._process.pid is not None
        kill_tree(self._process.pid)
        self._process.join()

    def finish(self) -> None:
        """Wait for it; one that fails fails the test."""
        try:
            self._process.join()
        except BaseException:
            self.kill()
            raise
        assert self._process.exitcode == 0, self.log.read_text()[-5000:]


def _run(arguments: Sequence[str], log: Path, launcher: Path | None, tests: int) -> None:
    os.setsid()
    end_with(tests)
    gc.freeze()  # what the libraries made stays; a collection among it takes half a second
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.exit(_launch(launcher, arguments) if launcher else main(arguments))


def _launch(config: Path, arguments: Sequence[str]) -> None:
    from accelerate.commands.launch import launch_command, launch_command_parser

    os.environ["DS_ACCELERATOR"] = "cpu"
    script = Path(__file__).with_name("rank.py")
    args = launch_command_parser().parse_args(
        ["--config_file", str(config), str(script), *arguments]
    )
    # Options of torchrun, which gets what accelerate doesn't know: ranks are functions, not commands.
    args.run_path, args.start_method = True, "fork"
    launch_command(args)


def on_cpu(launcher: str, folder: Path, *, count: int = 2) -> Path:
    """The launcher config of that name that ships, for two processes without GPUs; the rest stays."""
    file = Path(__file__).parents[1] / "recipes" / "accelerate" / f"{launcher}.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    config |= {"num_processes": count, "use_cpu": True, "mixed_precision": "no"}
    config |= {"main_process_port": free_port()}
    path = folder / f"launcher-{launcher}-{count}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


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
    """Return when the condition holds. There is no limit but that of the test (pyproject.toml)."""
    while not condition():
        time.sleep(0.02)


def pytest_sessionstart() -> None:
    """Let a signal that ends this process end its test first, and a worker end with its run.

    SIGINT is ignored in what a shell starts in the background, and SIGTERM ends a process at once.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" in os.environ:
        end_with(os.getppid())


def _kill_what_a_failure_leaves() -> Generator[None, None, None]:
    """Processes that a test started and didn't end go with it, so that a hang leaves nothing behind."""
    before = _children()
    try:
        yield
    except BaseException:
        for child in _children() - before:
            kill_tree(child)
        raise


def _children() -> set[int]:
    """Children of this process, as Linux lists them: asking psutil before each test would take too long."""
    pids = set()
    for file in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended meanwhile
            pids |= set(map(int, file.read_text().split()))
    return pids


def gone(pid: int) -> bool:
    """Whether it has ended; init may not have asked for its status yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    return (yield from _kill_what_a_failure_leaves())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    return (yield from _kill_what_a_failure_leaves())
