"""The runs under a folder: their stages, how far each is, its key figure and its size."""

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from dualign.errors import CheckpointError
from dualign.progress import read_progress
from dualign.report.key_figures import key_figure, progress_figure
from dualign.rundir import (
    CHECKPOINTS,
    LAUNCHED,
    RUN_JSON,
    last_start,
    read_paused,
    read_run,
    work_folder,
)
from dualign.training.resuming import complete_checkpoints, step_of

_DEPTH = 4
"""folders below the one that is named: runs/EXPERIMENT/runs/NAME/STAGE"""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageFolder:
    """A stage in an output folder."""

    name: str
    kind: str
    """"" of a stage that left no run.json"""
    state: str
    """done, running, cut off, paused at step N, or damaged"""
    figure: str
    """what it achieved, in a few words; "" if there is nothing to say"""
    seconds: float | None
    started: str
    """ISO 8601, UTC; "" if it isn't known"""
    size: int
    """bytes on disk, its unfinished work too"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """An output folder of a recipe; `size` counts everything in it, in bytes."""

    path: Path
    stages: tuple[StageFolder, ...]
    is_running: bool
    size: int


def read_runs(folder: Path) -> tuple[RunFolder, ...]:
    """Return the output folders under `folder`, itself included, by path.

    Raises:
        CheckpointError: no such folder.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; expected one that `dualign run` wrote")
    return tuple(_run(path) for path in _output_folders(folder, _DEPTH))


def _output_folders(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the folders that hold stages, finished or not."""
    stages = _stage_names(folder)
    if stages:
        yield folder
    for child in sorted(folder.iterdir()):
        is_plain = child.is_dir() and not child.is_symlink() and not child.name.startswith(".")
        if depth and is_plain and child.name not in stages:
            yield from _output_folders(child, depth - 1)


def _stage_names(folder: Path) -> list[str]:
    """Return the names of the stages in an output folder, in the order in which they were started."""
    finished = {path.parent.name for path in folder.glob(f"*/{RUN_JSON}")}
    partial = {
        path.parent.name.removeprefix(".").removesuffix(".partial")
        for path in folder.glob(".*.partial/stage.json")
    }
    started = {name: _started(folder / name) for name in finished | partial}
    return sorted(started, key=lambda name: (started[name] or "~", name))


def _started(run_dir: Path) -> str:
    with suppress(CheckpointError):
        return str(read_run(run_dir).get("started") or "")
    return ""


def _run(folder: Path) -> RunFolder:
    since = _written_since(folder)
    return RunFolder(
        path=folder,
        stages=tuple(_stage(folder / name, since) for name in _stage_names(folder)),
        is_running=since is not None,
        size=size_of(folder),
    )


def is_written(folder: Path) -> bool:
    """Return whether a run writes in a folder, by the note that it leaves; of another machine's the note counts."""
    return _written_since(folder) is not None


def _written_since(folder: Path) -> float | None:
    """Return when the run that writes in a folder began, in seconds since 1970; None if none does."""
    notes = (folder / f".{name}.json" for name in ("running", LAUNCHED))
    return min((begun for note in notes if (begun := _begun(note)) is not None), default=None)


def _begun(note: Path) -> float | None:
    """Return when a note was written, if its process lives."""
    try:
        begun = note.stat().st_mtime
        owner = json.loads(note.read_text(encoding="utf-8"))
        if owner["host"] != socket.gethostname():
            return begun
        # The number of a process that was killed may belong to a later one.
        return begun if psutil.Process(int(owner["pid"])).create_time() <= begun + 1 else None
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None


def _stage(run_dir: Path, run_since: float | None) -> StageFolder:
    work = work_folder(run_dir)
    size = sum(size_of(path) for path in (run_dir, work) if path.is_dir())
    try:
        record = read_run(run_dir)
    except CheckpointError:
        record, state = {}, "damaged"
    else:
        state = _state(run_dir, work, run_since)
    return StageFolder(
        name=run_dir.name,
        kind=str(record.get("kind", "")),
        state=state,
        figure=key_figure(record)
        if state == "done"
        else progress_figure(read_progress(work), is_running=state == "running"),
        seconds=record.get("seconds"),
        started=str(record.get("started") or ""),
        size=size,
    )


def _state(run_dir: Path, work: Path, run_since: float | None) -> str:
    if not work.is_dir():
        return "done"
    # A run that does an earlier stage again leaves the work of a later one as it was cut off.
    if run_since is not None and last_start(work) >= run_since:
        return "running"
    if paused := read_paused(run_dir):
        return f"paused at step {paused.step}"
    complete = complete_checkpoints(work / CHECKPOINTS)
    return f"cut off, checkpoint of step {step_of(complete[-1])}" if complete else "cut off"


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files under a folder; links count as nothing."""
    if path.is_symlink():
        return 0
    if path.is_file():
        return path.stat().st_size
    total = 0
    for file in path.rglob("*"):
        with suppress(OSError):  # a file that goes while we look
            total += file.stat().st_size if file.is_file() and not file.is_symlink() else 0
    return total
