"""A rank that hangs ends the run: the others would wait for it until torch's timeout, 10 to 30 minutes.

Only the inside of a step is watched: evaluation, saving, a retention measured by one rank and the
first two steps, which may compile, take as long as they take. A rank gives a sign of life when it ends
a part of a step, and when its main thread is at another place. A step hangs when no rank gives any for
300 s, and for ten times as long as the slowest part so far: one row may be much longer than those
before it. A rank whose threads all stand still, as of a process that is stopped, is sure after 45 s.
Each rank tells the others how far it is, in a file beside the checkpoints, and none is ended while
another one works outside of a step.
"""

import json
import os
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dualign.errors import excerpt
from dualign.lifetime import NO_PROGRESS, kill_tree, leave_error
from dualign.rundir import write_json

_SECONDS = 300
_COMPILING = 600  # a step may compile at a new shape
_STOPPED = 45  # of a rank whose threads stand still
_TIMES = 10  # the slowest part of a step
_RANKS = 64  # that write a file every 2 s; more of them write more rarely, for the folder's sake
_WAITS = ("torch/distributed", "deepspeed/comm")  # of the files in the stack of a rank that waits


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a rank is, as it tells the others."""

    rank: int
    local_rank: int
    host: str
    pid: int
    launcher: int
    """the process that started it"""
    tick: int
    """grows as long as the rank's watching thread runs"""
    parts: int
    """parts of steps that it has done"""
    inside: bool
    """whether it is within a step"""
    place: str
    """where its main thread is"""
    waits: bool
    """whether that is a collective"""


def seconds_to_a_hang(stage: Any) -> float:
    """Return how long ranks may give no sign of life: `train.ddp_timeout` where a recipe has it."""
    if "ddp_timeout" in stage.train:
        return float(stage.train["ddp_timeout"])
    compiles = stage.train.get("torch_compile") or stage.attn_implementation == "flex_attention"
    return _COMPILING if compiles else _SECONDS


class EndHangs(TrainerCallback):
    """Watches the steps of this rank from a thread; without other ranks it does nothing."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder, self._least, self._stopped = folder, seconds, min(_STOPPED, seconds)
        self._every = min(2.0, seconds / 5)
        self._parts, self._steps, self._inside, self._slowest = 0, 0, False, 0.0
        self._last = time.monotonic()
        self._over = threading.Event()
        self._main = threading.get_ident()
        self._thread: threading.Thread | None = None
        self._tick = 0
        # Of each rank and kind of sign: the last one, and for how long it has been that.
        self._signs: dict[tuple[int, str], tuple[object, float]] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # auto_find_batch_size begins again after a batch that was too large.
        if args.world_size > 1 and self._thread is None:
            self._rank, self._count = args.process_index, args.world_size
            self._local_rank = args.local_process_index
            self._every *= max(1.0, args.world_size / _RANKS)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file(self._rank).unlink(missing_ok=True)  # of a run that was cut off
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._over.set()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._part(inside=True)

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self._part(inside=True)

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._part(inside=True)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._part(inside=False)
        self._steps += 1

    def _part(self, *, inside: bool) -> None:
        now = time.monotonic()
        if self._inside and self._steps > 0:  # the first step loads kernels
            self._slowest = max(self._slowest, now - self._last)
        self._last, self._inside = now, inside
        self._parts += 1

    def _watch(self) -> None:
        """Tell the others how far this rank is, and end the run when a step hangs.

        Time is that in which this thread ran: a machine that slept hasn't hung.
        """
        before = time.monotonic()
        while not self._over.wait(self._every):
            now = time.monotonic()
            passed, before = min(now - before, 2 * self._every), now
            # A folder that is full, or away for a while, says nothing of the ranks.
            with suppress(OSError, ValueError):
                self._look(passed)

    def _look(self, passed: float) -> None:
        """Tell how far this rank is, and look at the others, `passed` seconds after the last time."""
        self._tick += 1
        own = self._own(self._tick)
        write_json(self._file(self._rank), asdict(own))
        life = self._unchanged(own.rank, "life", (own.parts, own.inside, own.place), passed)
        # A thousand ranks that read a thousand files each would keep a network folder busy.
        others = self._others() if own.inside and life > self._stopped / 5 else None
        if others is None:
            return
        lives = [
            self._unchanged(rank.rank, "life", (rank.parts, rank.inside, rank.place), passed)
            for rank in others
        ]
        frozen = {
            rank.rank
            for rank in others
            if self._unchanged(rank.rank, "tick", rank.tick, passed) > self._stopped
        }
        bound = max(self._stopped if frozen else self._least, _TIMES * self._slowest)
        still = min(life, *lives)
        if self._steps > 1 and still > bound:
            self._end(hanging([own, *others], frozen), own, still)

    def _unchanged(self, rank: int, kind: str, sign: object, passed: float) -> float:
        """Return for how long a rank's sign has been the same."""
        last, seconds = self._signs.get((rank, kind), (None, 0.0))
        seconds = seconds + passed if sign == last else 0.0
        self._signs[rank, kind] = sign, seconds
        return seconds

    def _own(self, tick: int) -> Progress:
        frames = traceback.extract_stack(sys._current_frames()[self._main])
        last = frames[-1]
        return Progress(
            rank=self._rank,
            local_rank=self._local_rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            launcher=os.getppid(),
            tick=tick,
            parts=self._parts,
            inside=self._inside,
            place=f"{last.filename}:{last.lineno} in {last.name}",
            waits=any(folder in frame.filename for frame in frames[-8:] for folder in _WAITS),
        )

    def _others(self) -> list[Progress] | None:
        """Return how far the other ranks are, by their files; None before all have one."""
        files = [self._file(rank) for rank in range(self._count) if rank != self._rank]
        if not all(file.is_file() for file in files):
            return None
        return [Progress(**json.loads(file.read_text(encoding="utf-8"))) for file in files]

    def _file(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.json"

    def _end(self, ranks: list[Progress], own: Progress, seconds: float) -> None:
        """Leave the error of the first rank that hangs, and end it and this one."""
        if not ranks:
            return
        first = ranks[0]
        text = (
            f"{NO_PROGRESS} for {seconds:.0f} s in step {self._steps + 1} of this run; rank {first.rank} on "
            f"{first.host} (pid {first.pid}) is at {excerpt(first.place, 200)}; its stack: py-spy dump --pid"
        )
        near = (first.host, first.launcher) == (own.host, own.launcher)
        leave_error(text, first.local_rank if near else own.local_rank)
        sys.stderr.write(f"rank {own.rank}: {text}\n")
        sys.stderr.flush()
        if near and first.pid != own.pid:
            kill_tree(first.pid)
        os._exit(1)


def hanging(ranks: list[Progress], frozen: set[int]) -> list[Progress]:
    """Return the ranks that the others wait for; none where one works outside of a step.

    They are those whose threads all stand still, else those behind the others, else those that are
    in no collective, else all.
    """
    if not all(rank.inside for rank in ranks):
        return []
    still = [rank for rank in ranks if rank.rank in frozen]
    if still:
        return still
    least = min(rank.parts for rank in ranks)
    behind = [rank for rank in ranks if rank.parts == least]
    if len(behind) < len(ranks):
        return behind
    return [rank for rank in ranks if not rank.waits] or ranks
