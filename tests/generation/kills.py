"""Commands that are killed while they ask a server, and what they ask twice."""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from dualign.cli.main import main
from tests.generation.servers import Proxy


def run_with_kills(
    command: Sequence[str],
    server: Proxy,
    *,
    kills: int,
    requests: int,
    label: Callable[[dict[str, Any]], Hashable],
    answered: Callable[[], set[Any]],
) -> Counter[Hashable]:
    """Run a command that makes so many requests, with `kill -9` at random points; return how often each was made.

    Between two kills a growing part of the answers has come; what the file holds isn't asked again.

    Args:
        label: tells requests apart by their bodies.
        answered: the labels of the whole lines in the file.
    """
    known: Counter[Hashable] = Counter()
    points = random.Random(kills)
    for number in range(kills + 1):
        before, started = answered(), len(server.asked)
        # A fork has the libraries already; the new process asks a server that lives in this one.
        child = multiprocessing.get_context("fork").Process(target=_silent_main, args=(command,))
        child.start()
        goal = started + points.randint(1, requests // (kills + 1))
        while number < kills and len(server.asked) < goal and child.is_alive():
            time.sleep(0.002)
        if number < kills:
            child.kill()
        child.join()
        assert child.exitcode == (0 if number == kills else -signal.SIGKILL)
        time.sleep(0.1)  # what was on its way arrives at the server
        asked_now = Counter(label(asked.body) for asked in server.asked[started:])
        assert not asked_now.keys() & before, "an answer that the file held was asked for again"
        known += asked_now
    return known


def _silent_main(command: list[str]) -> None:
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    sys.exit(main(command))
