"""report.html while a run goes on: a thread writes it from what the stages leave in their folders.

    with LiveReport(recipe) as live:
        engine.run(recipe, watch=live.stage_starts)

The page is written as often as costs at most a hundredth of one core's time; what a finished stage
shows is read and drawn once. Nothing is asked of the stage, and what fails here is told once: the run
is worth more. When it ends, the last page says how.
"""

import logging
import os
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from dualign.distributed import is_main_process
from dualign.engine import StageStatus
from dualign.errors import DualignError
from dualign.lifetime import LAUNCHER_PID
from dualign.progress import read_progress
from dualign.recipe import Recipe
from dualign.rundir import CHECKPOINTS, RUN_JSON, read_paused, read_run, work_folder

if TYPE_CHECKING:
    from dualign.report.blocks import Section
    from dualign.report.live_page import Ending, LiveRun, LiveStage

logger = logging.getLogger(__name__)
_SECONDS = 10.0  # between two pages, at least
_SHARE = 100  # times the time that a page takes
_LONGEST = 120  # seconds until a browser looks again
_LONGEST_PAUSE = 240  # between two pages, at most: after 300 live.js calls a page left alone


class LiveReport:
    """Writes the page of a run from the start of its first stage to the end.

    Args:
        report_follows: a report of all stages stands in the page's place when the run is done.
    """

    def __init__(self, recipe: Recipe, *, report_follows: bool = False) -> None:
        self._recipe, self._report_follows = recipe, report_follows
        # A launched stage is shown by the process that launched it.
        self._is_writer = is_main_process() and LAUNCHER_PID not in os.environ
        self._stages: Sequence[StageStatus] = ()
        self._current: StageStatus | None = None
        self._started: list[str] = []
        self._since = datetime.now(UTC)
        self._wake, self._over = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._sections: tuple[tuple[Path, ...], tuple[Section, ...]] = ((), ())
        self._pause = _SECONDS
        self._failed = False

    def stage_starts(self, status: StageStatus, stages: Sequence[StageStatus]) -> None:
        """Show a stage as running; the engine calls it."""
        if not self._is_writer:
            return
        # Imported by the run's own thread: two threads that import the same can meet half a module.
        from dualign.report import live_page, report  # noqa: F401

        self._stages, self._current, self._since = stages, status, datetime.now(UTC)
        self._started.append(status.entry.name)
        self._wake.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="live report", daemon=True)
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write the last page, which doesn't load itself again."""
        self.stop()
        if self._thread is None:
            return
        if error is not None or not self._report_follows or self._is_paused():
            self._write(error=error, ended=True)

    def stop(self) -> None:
        """Leave the page to the report, which is written before the block ends."""
        self._over.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.is_set():
            self._write()
            self._wake.wait(self._pause)
            self._wake.clear()  # before the next look at what woke it

    def _write(self, error: BaseException | None = None, *, ended: bool = False) -> None:
        from dualign.report.live_page import finished_sections, live_page
        from dualign.report.render import render_html
        from dualign.report.report import PAGE, write_page
        from dualign.report.runs import read_stage

        try:
            clock = time.thread_time()
            run = self._run(error, ended=ended)
            paths = tuple(stage.path for stage in run.finished)
            is_new = self._sections[0] != paths
            if is_new:
                self._sections = paths, finished_sections([read_stage(path) for path in paths])
            page = render_html(live_page(run, self._sections[1]))
            write_page(self._recipe.output_dir / PAGE, page)
            # Drawing what is new costs seconds, and only once.
            cost = 0.0 if is_new else time.thread_time() - clock
            self._pause = min(max(_SECONDS, _SHARE * cost), _LONGEST_PAUSE)
        except Exception as fault:
            if not self._failed:
                logger.warning(
                    "the page of the run can't be written (%s: %s); the run goes on",
                    type(fault).__name__,
                    fault,
                )
            self._failed = True

    def _run(self, error: BaseException | None, *, ended: bool) -> "LiveRun":
        from dualign.report.live_page import LiveRun

        ending = self._ending(error)
        return LiveRun(
            title=self._recipe.name,
            stages=tuple(self._stage(status, ending, ended=ended) for status in self._stages),
            since=self._since,
            now=datetime.now(UTC),
            ending=ending,
            refresh_seconds=0 if ended else min(_LONGEST, max(1, round(self._pause))),
        )

    def _stage(self, status: StageStatus, ending: "Ending | None", *, ended: bool) -> "LiveStage":
        from dualign.report.live_page import LiveStage
        from dualign.report.runs import StageRun, read_unfinished

        name, kind, folder = status.entry.name, status.entry.kind, status.run_dir
        done = status.state == "done" or name in self._started
        if status is self._current and not _is_done(status):
            state = "running"
            if ended:
                state = ending.state if ending else _pause_of(status)
            work = work_folder(folder)
            run = read_unfinished(work, name=name, kind=kind)
            return LiveStage(
                name=name, kind=kind, state=state, run=run, progress=read_progress(work)
            )
        if done and (folder / RUN_JSON).is_file():
            run = StageRun(path=folder, name=name, kind=kind, record=read_run(folder))
            return LiveStage(name=name, kind=kind, state="done", run=run)
        return LiveStage(name=name, kind=kind, state="to do")

    def _ending(self, error: BaseException | None) -> "Ending | None":
        """Return what the last page says of how the run ended; None if it goes on, or was paused."""
        from dualign.report.live_page import Ending

        if error is None:
            return None
        if isinstance(error, KeyboardInterrupt):
            return Ending(state="interrupted", text=self._resuming())
        if isinstance(error, DualignError):
            return Ending(state="failed", text=str(error))
        return Ending(state="failed", text=f"{type(error).__name__}: {error}")

    def _resuming(self) -> str:
        """Return what goes on with the run, and from where."""
        from dualign.training.resuming import complete_checkpoints, step_of

        again = "Run the same command again: finished stages are skipped"
        if self._current is None or _is_done(self._current):
            return f"{again}."
        name = self._current.entry.name
        checkpoints = complete_checkpoints(work_folder(self._current.run_dir) / CHECKPOINTS)
        if checkpoints:
            return f"{again}, and {name} goes on from its checkpoint of step {step_of(checkpoints[-1])}."
        return f"{again}, and {name} goes on with what it has saved; without a checkpoint, training starts over."

    def _is_paused(self) -> bool:
        return self._current is not None and not _is_done(self._current)


def _is_done(status: StageStatus) -> bool:
    return read_run(status.run_dir).get("fingerprint") == status.fingerprint


def _pause_of(status: StageStatus) -> str:
    paused = read_paused(status.run_dir)
    return "unfinished" if paused is None else f"paused at step {paused.step}"
