"""A rank that fails: the launch ends at once, and its own error stands before what others made of it."""

import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from dualign.first_failure import failures, in_words, main
from tests import processes

ROOT = Path(__file__).parents[1]
LOST = "RuntimeError: [/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:3"
OWN = "OutOfMemoryError: stage sft: no memory left"
# A rank that waits for the other one, which raises, is killed, or ends with an error that users can mend.
RANK = """
import os, signal, sys
import torch.distributed as dist
from dualign.cli import commands
from dualign.cli.main import main
from dualign.errors import DataError
from dualign.lifetime import end_with_launcher

def run(args):
    end_with_launcher()
    dist.init_process_group("gloo")
    dist.barrier()
    if dist.get_rank() == 1:
        kind = sys.argv[1]
        if kind == "killed": os.kill(os.getpid(), signal.SIGKILL)
        raise (DataError if kind == "refused" else ZeroDivisionError)(f"rows.jsonl, row 3 is {kind}")
    dist.barrier()

commands.run = run
main(["run", "recipe.yaml"])
"""


def write(logs: Path, rank: int, text: str, time: int, attempt: int = 0) -> None:
    folder = logs / "none_x" / f"attempt_{attempt}" / str(rank)
    folder.mkdir(parents=True, exist_ok=True)
    message = {"message": text, "extraInfo": {"py_callstack": "", "timestamp": str(time)}}
    (folder / "error.json").write_text(json.dumps({"message": message}))


def ended(rank: int, code: int) -> ProcessFailure:
    return ProcessFailure(local_rank=rank % 2, pid=1, exitcode=code, error_file="")


def test_the_error_of_a_rank_stands_before_what_others_made_of_it(tmp_path: Path) -> None:
    write(tmp_path, 0, LOST, 10)
    write(tmp_path, 1, OWN, 10)
    first, second = failures({0: ended(0, 1)}, tmp_path)  # torchrun saw the other one alone
    assert (first.rank, first.text, second.rank) == (1, OWN, 0)
    lines = in_words([first, second]).splitlines()
    assert lines[0].startswith("rank 1 on ")
    assert lines[0].endswith(f"failed first: {OWN}")
    assert lines[1] == f"  then rank 0: {LOST}"


def test_a_killed_rank_stands_before_those_that_lost_it(tmp_path: Path) -> None:
    write(tmp_path, 0, "ValueError: a wrapper's own words", 10)
    first, second = failures({2: ended(0, 1), 3: ended(1, -signal.SIGKILL)}, tmp_path)
    assert "no memory left" in first.text
    assert (first.rank, second.rank) == (3, 2), "ranks of a second machine count on"
    first, _ = failures({2: ended(0, 1), 3: ended(1, -signal.SIGABRT)}, tmp_path)
    assert first.rank == 2, "NCCL aborts a rank that waited for another"


def test_the_last_attempt_counts(tmp_path: Path) -> None:
    for attempt in (9, 10):
        write(tmp_path, 0, f"DataError: try {attempt}", attempt, attempt)
    assert [failure.text for failure in failures({0: ended(0, 1)}, tmp_path)] == [
        "DataError: try 10"
    ]
    assert "exit status 7" in failures({0: ended(0, 7)}, tmp_path / "none")[0].text


def test_a_launch_without_ranks_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit(3)")
    settings = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no"]
    assert main([*settings, "--dynamo_backend", "no", "--cpu", str(script)]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("raised", "ZeroDivisionError: rows.jsonl, row 3 is raised"),
        ("refused", "DataError: rows.jsonl, row 3 is refused"),
        ("killed", "killed by SIGKILL, most likely by the kernel"),
    ],
)
def test_a_launch_ends_with_its_rank(tmp_path: Path, kind: str, words: str) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    config = processes.on_cpu("fsdp2", tmp_path)
    command = [sys.executable, "-m", "dualign.first_failure", "--config_file", str(config)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = processes.start([*command, str(script), kind], env=environment)
    output, _ = process.communicate()
    assert process.returncode == 1
    last = output[output.rindex("failed first: ") :]
    assert last.startswith(f"failed first: {words}")
    assert "rank 1 on" in output
    folder = Path(output[output.index("kept in ") :].split()[2].partition("/*")[0])
    said = [file.read_text() for file in folder.glob("*/attempt_0/1/stderr.log")]
    assert len(said) == 1, "rank 1 has a log of its own"
    assert ("row 3" in said[0]) == (kind != "killed")
    shutil.rmtree(folder)
