"""`accelerate launch` that ends with the error of the rank that failed first, not with what others made of it.

python -m dualign.first_failure --config_file zero3.yaml -m dualign sft RECIPE

When a rank dies, the others lose their connections, and their messages stand around the one that
counts. Each rank writes its error where torchrun looks for it (lifetime.py); a rank that is killed
can't, but leaves a signal.
"""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dualign.lifetime import NO_PROGRESS

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

# What a rank says that has lost another one.
_LOST = re.compile(
    r"connection (closed|reset|refused|was)|broken pipe|socket (error|timeout)|store_|recvValue|"
    r"remote process (has )?exited|Dist(Backend|Network|Store)Error|ncclRemoteError|ncclSystemError",
    re.IGNORECASE,
)
_NO_MEMORY = (
    "killed by SIGKILL, most likely by the kernel because this machine had no memory left (`dmesg` tells): "
    "try fewer processes, a smaller train.per_device_train_batch_size, or an engine that shards weights"
)
# torchrun's option, which gets what accelerate doesn't know: what ranks but the first one say goes into a file each.
_REDIRECTS = ",".join(f"{rank}:3" for rank in range(1, 10))  # of its digits
_WHERE = "what each rank said is kept in {}/*/attempt_*/RANK (of the first one, above)"
_FROM_OTHERS = (signal.SIGTERM, signal.SIGABRT)  # of torchrun, and of NCCL when a rank is missing


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Failure:
    """How a rank ended; the first of a sorted list is why the launch did."""

    order: int
    """0: a hang; 1: a signal from outside; 2: an error of its own; 3: what follows from another rank; 4: nothing said"""
    time: int
    rank: int
    text: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Launch as accelerate does; returns 1 after words on the rank that failed first, if one did."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    args = launch_command_parser().parse_args(arguments)
    own = None if args.log_dir else tempfile.mkdtemp(prefix="dualign-ranks-")
    logs = Path(own or args.log_dir)
    args.log_dir, args.redirects = str(logs), _REDIRECTS
    try:
        launch_command(args)
    except ChildFailedError as error:
        sys.stderr.write(in_words(failures(error.failures, logs)) + f"\n{_WHERE.format(logs)}\n")
        own = None  # what ranks said stays
        return 1
    except subprocess.CalledProcessError as error:  # a process alone has said why
        return int(error.returncode)
    finally:
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)
    return 0


def failures(ended: "Mapping[int, ProcessFailure]", logs: Path) -> list[Failure]:
    """Return how ranks of this machine failed, why first.

    Args:
        ended: by rank, those that torchrun saw; it then stops the others, which may have failed before.
        logs: torchrun's folder: LOGS/RUN/attempt_0/LOCAL_RANK/error.json.
    """
    first = min(rank - failure.local_rank for rank, failure in ended.items())
    by_rank = {failure.rank: failure for failure in _recorded(logs, first)}
    for rank, failure in ended.items():
        if rank not in by_rank:
            by_rank[rank] = _silent(rank, failure)
    return sorted(by_rank.values())


def in_words(ranks: Sequence[Failure]) -> str:
    """Return the error of the first rank, then a line for each other one."""
    host = socket.gethostname()
    first, *others = ranks
    lines = [f"rank {first.rank} on {host} failed first: {first.text}"]
    lines += [
        f"  then rank {other.rank}: {other.text.strip().partition(chr(10))[0][:200]}"
        for other in others
    ]
    return "\n".join(lines)


def _recorded(logs: Path, first: int) -> Iterator[Failure]:
    """Yield the errors that ranks wrote in the last attempt."""
    attempts = sorted(logs.glob("*/attempt_*"), key=lambda path: int(path.name.split("_")[1]))
    for file in attempts[-1].glob("*/error.json") if attempts else ():
        message = json.loads(file.read_text(encoding="utf-8"))["message"]
        text, time = message["message"], int(message["extraInfo"]["timestamp"])
        order = 0 if text.startswith(NO_PROGRESS) else 3 if _LOST.search(text) else 2
        yield Failure(order=order, time=time, rank=first + int(file.parent.name), text=text)


def _silent(rank: int, failure: "ProcessFailure") -> Failure:
    """Return what the exit status of a rank says that wrote no error."""
    code = failure.exitcode
    if code >= 0:
        text, order = f"exit status {code}; no error was left", 4
    elif code == -signal.SIGKILL:
        text, order = _NO_MEMORY, 1
    else:
        text = f"ended by {failure.signal_name()}"
        order = 3 if -code in _FROM_OTHERS else 1
    return Failure(order=order, time=failure.timestamp, rank=rank, text=text)


if __name__ == "__main__":
    raise SystemExit(main())
