"""The run directory: what a stage leaves behind, and what the next one may rely on.

A run directory is complete or it isn't there: a stage works in a hidden folder beside it, and `publish` renames that
folder when run.json is in it and everything has reached the disk.
"""

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dualign.errors import CheckpointError

RUN_JSON = "run.json"
CHECKPOINTS = "checkpoints"
LAUNCHED = "launched"  # the lock of a stage that `dualign run` started through a launcher
_STATE = "stage.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a stage reports about its work; the engine writes it into run.json."""

    metrics: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, Any] | None = None
    checks: Mapping[str, Any] = field(default_factory=dict)
    data: tuple[Mapping[str, Any], ...] = ()


def read_run(folder: Path) -> dict[str, Any]:
    """run.json of a run directory; {} when there is none.

    Raises:
        CheckpointError: run.json can't be read.
    """
    path = folder / RUN_JSON
    if not path.is_file():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path}: not JSON ({error}); delete {folder} and run again"
        ) from None
    return loaded if isinstance(loaded, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(
        json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8"
    )
    aside.replace(path)


def work_folder(run_dir: Path) -> Path:
    """Where a stage works until its run directory is complete."""
    return run_dir.with_name(f".{run_dir.name}.partial")


def open_work(run_dir: Path, fingerprint: str) -> tuple[Path, int]:
    """The work folder for this fingerprint, and how often the stage was started before.

    Work of another fingerprint is of no use, and is deleted.
    """
    work = work_folder(run_dir)
    state = _read_state(work)
    if state.get("fingerprint") != fingerprint:
        shutil.rmtree(work, ignore_errors=True)
        state = {"fingerprint": fingerprint, "starts": 0}
    work.mkdir(parents=True, exist_ok=True)
    resumed = int(state["starts"])
    write_json(work / _STATE, {**state, "starts": resumed + 1})
    return work, resumed


def _read_state(work: Path) -> dict[str, Any]:
    try:
        loaded = json.loads((work / _STATE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def publish(work: Path, run_dir: Path) -> None:
    """Turn a finished work folder (run.json is in it) into the run directory, replacing an older one."""
    shutil.rmtree(work / CHECKPOINTS, ignore_errors=True)
    (work / _STATE).unlink(missing_ok=True)
    for path in work.rglob("*"):
        if path.is_file():
            _sync(path)
    old = run_dir.with_name(f".{run_dir.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if run_dir.exists():
        run_dir.rename(old)
    work.rename(run_dir)
    _sync(run_dir.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path, name: str = "running", *, wait: float = 0) -> Iterator[None]:
    """Hold the folder for this run; the kernel lets go when the process ends, however it ends.

    Raises:
        CheckpointError: another run holds it, and still does after `wait` seconds.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / f".{name}.json"
    lock = FileLock(folder / (".lock" if name == "running" else f".{name}.lock"), timeout=wait)
    try:
        lock.acquire()
    except Timeout:
        held = json.loads(owner.read_text(encoding="utf-8")) if owner.is_file() else {}
        raise CheckpointError(
            f"{folder}: another run is writing here (process {held.get('pid', '?')} on {held.get('host', '?')}); "
            "wait for it, stop it, or set another output_dir"
        ) from None
    try:
        write_json(owner, {"pid": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
