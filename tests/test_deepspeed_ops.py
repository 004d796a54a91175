"""What DeepSpeed compiles: once, before the ranks need it, and never behind the lock of a dead process."""

import os
import signal
import socket
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from dualign import deepspeed_ops
from dualign.deepspeed_ops import (
    EXTENSIONS_DIR,
    on_network,
    ops_of_config,
    ops_of_environment,
    prepare_ops,
    remove_stale_locks,
)
from dualign.errors import CheckpointError
from tests import processes

SHARED_MEMORY = "ShareMemCommBuilder"
HOLDER = """
import runpy, sys
from importlib.util import find_spec
file = find_spec("torch").submodule_search_locations[0] + "/utils/file_baton.py"  # torch takes seconds
FileBaton = runpy.run_path(file)["FileBaton"]
assert FileBaton(sys.argv[1]).try_acquire()
print("held", flush=True)
sys.stdin.readline()
"""
PREPARE = f"""
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s")
from dualign.deepspeed_ops import prepare_ops
from dualign.errors import CheckpointError
try:
    prepare_ops(["{SHARED_MEMORY}"])
except CheckpointError as error:
    print(error)
"""
# Whoever is asked to compile says so and waits; other questions are answered by the real one.
COMPILER = """#!/bin/sh
case " $* " in *" -c "*) echo $$ >> {folder}/compilers; exec sleep 1000000;; esac
exec c++ "$@"
"""


@pytest.mark.parametrize(
    ("settings", "ops"),
    [
        ({"distributed_type": "FSDP"}, ()),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 2}},
            (SHARED_MEMORY,),
        ),
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": None}, (SHARED_MEMORY,)),
        (
            {
                "distributed_type": "DEEPSPEED",
                "deepspeed_config": {"offload_optimizer_device": "cpu"},
            },
            (SHARED_MEMORY, "CPUAdamBuilder"),
        ),
        ({}, ()),
    ],
)
def test_a_config_names_what_its_ranks_compile(
    settings: dict[str, object], ops: tuple[str, ...]
) -> None:
    assert ops_of_config(settings) == ops
    deepspeed = settings.get("deepspeed_config") or {}
    assert isinstance(deepspeed, dict)
    environment = {
        "ACCELERATE_USE_DEEPSPEED": str(settings.get("distributed_type") == "DEEPSPEED").lower(),
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": deepspeed.get(
            "offload_optimizer_device", "none"
        ),
    }
    assert ops_of_environment(environment) == ops


def test_a_launch_without_deepspeed_changes_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(EXTENSIONS_DIR, raising=False)
    prepare_ops(ops_of_environment({}))
    assert EXTENSIONS_DIR not in os.environ


def hold(lock: Path) -> subprocess.Popen[str]:
    lock.parent.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_lock_of_a_killed_process_is_removed_and_that_of_a_living_one_is_waited_for(
    tmp_path: Path,
) -> None:
    lock = tmp_path / "op" / "lock"
    holder = hold(lock)
    waiting = threading.Thread(target=remove_stale_locks, args=(tmp_path,), kwargs={"seconds": 0.1})
    waiting.start()
    waiting.join(1)  # time to do it wrong: however long this takes, the lock is alive
    assert waiting.is_alive() and lock.exists()
    holder.kill()
    holder.wait()
    waiting.join()
    assert not lock.exists()


def environment(folder: Path, compiler: str) -> dict[str, str]:
    root = str(Path(__file__).parents[1])
    return {
        **os.environ,
        "PYTHONPATH": root,
        "DS_ACCELERATOR": "cpu",
        EXTENSIONS_DIR: str(folder / "extensions"),
        "CXX": compiler,
    }


@pytest.mark.usefixtures("deepspeed")
def test_after_a_killed_compilation_nothing_runs_on_and_nobody_waits_for_ever(
    tmp_path: Path,
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER.format(folder=tmp_path))
    compiler.chmod(0o755)
    command = [sys.executable, "-c", PREPARE]
    process = processes.start(command, env=environment(tmp_path, str(compiler)))
    started = tmp_path / "compilers"
    processes.wait_until(lambda: started.exists() and started.read_text().endswith("\n"))
    children = psutil.Process(process.pid).children(recursive=True)
    assert {int(pid) for pid in started.read_text().split()} & {child.pid for child in children}
    os.kill(process.pid, signal.SIGKILL)
    said = process.communicate()[0]
    assert "compiling DeepSpeed's op deepspeed_shm_comm once for this machine" in said
    processes.wait_until(lambda: all(processes.gone(child.pid) for child in children))
    assert (tmp_path / "extensions" / "deepspeed_shm_comm" / "lock").exists()
    said = processes.finish(processes.start(command, env=environment(tmp_path, "false")))
    assert "the process that made it was killed" in said
    assert "DeepSpeed's ops can't be compiled (exit status 1: " in said
    assert "It needs a C++ compiler (g++) and ninja" in said


@pytest.mark.usefixtures("deepspeed")
def test_a_folder_that_cannot_be_made_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(EXTENSIONS_DIR, str(tmp_path / "file" / "extensions"))
    with pytest.raises(CheckpointError, match=f"set {EXTENSIONS_DIR} to a folder"):
        prepare_ops([SHARED_MEMORY])


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_a_launch_that_needs_deepspeed_says_how_to_get_it() -> None:
    with pytest.raises(CheckpointError, match=r"pip install 'dualign\[deepspeed\]'"):
        prepare_ops([SHARED_MEMORY])


@pytest.mark.parametrize(
    ("device", "kind", "shared"),
    [
        ("/dev/sda1", "ext4", False),
        ("overlay", "overlay", False),
        ("filer:/home", "nfs4", True),
        ("10.0.0.1@tcp:/scratch", "lustre", True),
        ("//server/share", "cifs", True),
        ("gpfs0", "gpfs", True),
        ("JuiceFS", "fuse.juicefs", True),
    ],
)
def test_a_folder_that_other_hosts_see_is_told_from_a_local_one(
    device: str, kind: str, shared: bool
) -> None:
    mounts = [("/dev/root", "/", "xfs"), (device, "/home", kind), ("proc", "/homely", "nfs")]
    assert on_network(Path("/home/ada/.cache/new"), mounts) is shared
    assert not on_network(Path("/tmp/x"), mounts)
    assert not on_network(Path("/tmp/x"), [])


def test_in_a_network_folder_each_host_has_its_own_ops(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A process of another host may hold torch's lock there, which nobody here can see."""
    monkeypatch.setenv(EXTENSIONS_DIR, str(tmp_path))
    assert deepspeed_ops._folder() == tmp_path
    monkeypatch.setattr(deepspeed_ops, "_mounts", lambda: [("filer:/home", "/", "nfs4")])
    own = tmp_path / socket.gethostname()
    assert deepspeed_ops._folder() == own
    monkeypatch.setenv(EXTENSIONS_DIR, str(own))  # as its ranks inherit it
    assert deepspeed_ops._folder() == own
