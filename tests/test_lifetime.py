"""kill -9 of a launcher: its ranks end, whatever they wait for, and so does what they started."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from dualign.lifetime import LAUNCHER_PID, end_with_launcher
from dualign.rundir import locked
from tests import processes

LAUNCHER = """
import subprocess, sys
rank = subprocess.Popen([sys.executable, *sys.argv[1:]], start_new_session=True)
print(rank.pid, flush=True)
rank.wait()
"""
RANK = """
import os, re, subprocess, sys
from pathlib import Path
from dualign.lifetime import end_with_launcher
from dualign.rundir import locked
end_with_launcher()
state, folder = sys.argv[1], Path(sys.argv[2])
if state != "rendezvous":
    (folder / "ready").touch()
if state == "lock":
    with locked(folder, wait=10**6): pass
elif state == "compiler":
    subprocess.run(["sh", "-c", "sleep 1000000 & echo $! > compiler; wait"], cwd=folder)
elif state == "native code":  # the interpreter's lock is held for ever
    re.match("(a+)+$", "a" * 60 + "b")
elif state == "rendezvous":
    import torch.distributed as dist
    store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    (folder / "ready").touch()
    dist.init_process_group("gloo", store=store, rank=0, world_size=2)
"""


@pytest.fixture
def rank(tmp_path: Path) -> Path:
    file = tmp_path / "rank.py"
    file.write_text(RANK)
    return file


def environment(**more: str) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if name != LAUNCHER_PID}
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[1]), **more}


def launch(rank: Path, state: str, launcher: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    """The launcher and its rank, which has come to the state."""
    file = rank.with_name(launcher)
    file.write_text(LAUNCHER)
    process = subprocess.Popen(
        [sys.executable, str(file), str(rank), state, str(rank.parent)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    processes.wait_until((rank.parent / "ready").exists)
    return process, child


@pytest.mark.parametrize("state", ["lock", "native code", "rendezvous"])
def test_a_rank_ends_with_its_launcher_whatever_it_waits_for(rank: Path, state: str) -> None:
    with locked(rank.parent):
        launcher, child = launch(rank, state, "accelerate")
        if state == "native code":  # the search is all that takes so much of the processor
            processes.wait_until(lambda: child.cpu_times().user > 2)
        launcher.kill()
        launcher.wait()
        processes.wait_until(lambda: processes.gone(child.pid))


def test_what_a_rank_has_started_ends_too(rank: Path) -> None:
    """The launcher is the `dualign run` of the rank, so that the rank is told by the thread alone."""
    run = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    child = subprocess.Popen(
        [sys.executable, str(rank), "compiler", str(rank.parent)],
        env=environment(**{LAUNCHER_PID: str(run.pid)}),
        stderr=subprocess.PIPE,
        text=True,
    )
    file = rank.with_name("compiler")
    processes.wait_until(lambda: file.exists() and file.read_text().endswith("\n"))
    compiler = int(file.read_text())
    run.kill()
    run.wait()
    assert "has ended, so this one ends too" in child.communicate()[1]
    assert child.returncode == 1
    processes.wait_until(lambda: processes.gone(compiler))


def test_a_rank_that_starts_after_its_launcher_ended_ends_too(rank: Path) -> None:
    """Its parent is init then, or whoever takes orphans."""
    command = f"{sys.executable} {rank} lock {rank.parent}; echo ended with $?"
    with locked(rank.parent):
        done = processes.finish(
            processes.start(["sh", "-c", command], env=environment(TORCHELASTIC_RUN_ID="none"))
        )
    assert "ended with 1" in done


def test_without_a_launcher_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that was sent to the background outlives its shell."""
    monkeypatch.delenv(LAUNCHER_PID, raising=False)
    before = threading.active_count()
    end_with_launcher()
    assert threading.active_count() == before


@pytest.mark.slow
def test_ranks_of_accelerate_end_when_it_is_killed(tmp_path: Path) -> None:
    """One waits for the other in the rendezvous, which waits for a lock."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from dualign.distributed import run_on_main_process\n"
        "from dualign.lifetime import end_with_launcher\n"
        "from dualign.rundir import locked\n"
        "end_with_launcher()\n"
        "rank, folder = os.environ['RANK'], Path(sys.argv[1])\n"
        "(folder / f'{rank}.pid').write_text(f'{os.getpid()}\\n')\n"
        "if rank == '1':\n"
        "    with locked(folder, wait=10**6): pass\n"
        "run_on_main_process(lambda: None)\n"
    )
    config = processes.on_cpu("fsdp2", tmp_path)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    with locked(tmp_path):
        process = processes.start(
            [*command, str(script), str(tmp_path)], env=environment(OMP_NUM_THREADS="1")
        )
        files = [tmp_path / f"{rank}.pid" for rank in (0, 1)]
        processes.wait_until(lambda: all(f.exists() and f.read_text() for f in files))
        ranks = [psutil.Process(int(file.read_text())) for file in files]
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        for child in ranks:
            processes.wait_until(lambda child=child: processes.gone(child.pid))


def test_a_process_whose_reader_is_gone_doesnt_end_like_one_that_is_done() -> None:
    command = [sys.executable, "-m", "dualign", "recipes", "keys"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment())
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait() == 128 + signal.SIGPIPE
