"""Run directories and other output folders: complete, or not there.

Work happens in a hidden folder next to the output. `finalize` renames it once everything is on the disk, so whoever
sees the output sees all of it, even after kill -9:

    out/.sft.partial/    the stage works here (`work_folder`)
    out/sft/             the same folder, renamed; what was there before is deleted afterwards

One lock, `locked`, keeps two processes from writing the same output.
"""

import contextlib
import json
import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dualign.errors import CheckpointError, DualignError

RUN_JSON = "run.json"
CHECKPOINTS = "checkpoints"
LAUNCHED = "launched"  # the lock of a stage that `dualign run` started through a launcher
PROGRESS = "progress.json"  # how far an unfinished stage is (dualign/progress.py)
_STATE = "stage.json"
_PAUSED = "paused.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A stage's report about its work; the engine writes it into run.json."""

    metrics: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, Any] | None = None
    checks: Mapping[str, Any] = field(default_factory=dict)
    data: tuple[Mapping[str, Any], ...] = ()


def summarize_outcomes(counts: Mapping[tuple[str, str], Counter[str]]) -> dict[str, Any]:
    """Return ROWS of run.json for (source, mode) -> how many rows were `kept`, or why they weren't."""
    by = [{"source": s, "mode": mode, **_summary(count)} for (s, mode), count in counts.items()]
    return {**_summary(sum(counts.values(), Counter[str]())), "by": by}


def _summary(count: Counter[str]) -> dict[str, Any]:
    dropped = {reason: n for reason, n in count.items() if reason != "kept"}
    return {"in": count.total(), "kept": count["kept"], "dropped": dropped}


@dataclass(frozen=True, kw_only=True, slots=True)
class Paused:
    """A training stage that stopped at its `pause_at_step`; its checkpoint stays in the work folder."""

    step: int
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """of the held-out rows at that step, by the names of log.jsonl; empty without held-out rows"""


def read_run(folder: Path) -> dict[str, Any]:
    """Return run.json of a run directory; {} if there is none.

    Raises:
        CheckpointError: run.json isn't JSON.
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
    """Write JSON atomically: a reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.new")
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def cache_folder() -> Path:
    """Return the folder of what is made once for a machine: $DUALIGN_CACHE, else ~/.cache/dualign."""
    return Path(os.environ.get("DUALIGN_CACHE") or "~/.cache/dualign").expanduser()


def tokens_folder() -> Path:
    """Return the folder of prepared data: $DUALIGN_TOKENS, else `tokens` in dualign's cache."""
    folder = os.environ.get("DUALIGN_TOKENS")
    return Path(folder).expanduser() if folder else cache_folder() / "tokens"


def work_folder(out: Path) -> Path:
    """Return the hidden folder next to `out` that is written before `out` is there."""
    return out.with_name(f".{out.name}.partial")


def is_work_of_stage(folder: Path) -> bool:
    """Return whether the engine opened a folder as the work folder of a stage."""
    return (folder / _STATE).is_file()


def last_start(work: Path) -> float:
    """Return when the stage of a work folder was last started, in seconds since 1970; 0 if it never was."""
    with contextlib.suppress(FileNotFoundError):
        return (work / _STATE).stat().st_mtime
    return 0.0


def open_work(out: Path, fingerprint: str, *, start: bool = True) -> tuple[Path, int]:
    """Return the work folder for a fingerprint, and how many times the work was started before.

    Work of another fingerprint is deleted.

    Args:
        start: the work starts now; False: something is put into the folder for when it starts.
    """
    work = work_folder(out)
    state = _read_state(work)
    if state.get("fingerprint") != fingerprint:
        shutil.rmtree(work, ignore_errors=True)
        state = {"fingerprint": fingerprint, "starts": 0}
    work.mkdir(parents=True, exist_ok=True)
    starts = int(state["starts"])
    write_json(work / _STATE, {**state, "starts": starts + start})
    return work, starts


def _read_state(work: Path) -> dict[str, Any]:
    try:
        state = json.loads((work / _STATE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return state if isinstance(state, dict) else {}


def write_paused(work: Path, paused: Paused) -> None:
    """Note in a work folder at which step its stage was paused."""
    write_json(work / _PAUSED, asdict(paused))


def read_paused(out: Path) -> Paused | None:
    """Return where the stage of a run directory that isn't there yet was paused last."""
    try:
        noted = json.loads((work_folder(out) / _PAUSED).read_text(encoding="utf-8"))
        return Paused(step=int(noted["step"]), metrics=noted["metrics"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def paused_model(work: Path, step: int) -> Path:
    """Return the folder of the model of a step at which a stage was paused."""
    return work / CHECKPOINTS / f"paused-{step}"


def finalize(work: Path, out: Path) -> None:
    """Give a finished work folder its name, in place of an older `out`, once it is on the disk."""
    shutil.rmtree(work / CHECKPOINTS, ignore_errors=True)
    for name in (_STATE, _PAUSED, PROGRESS):
        (work / name).unlink(missing_ok=True)
    for path in work.rglob("*"):
        if path.is_file():
            _sync(path)
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    work.rename(out)
    _sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_new(out: Path, *, force: bool | None = None) -> None:
    """Refuse an output folder that holds something; `force` None: the command has no --force.

    Raises:
        CheckpointError: it does, and `force` isn't true.
    """
    if not force and out.exists() and (not out.is_dir() or any(out.iterdir())):
        remedy = "choose another folder" + ("" if force is None else ", or use --force")
        raise CheckpointError(f"{out}: is there already; {remedy}")


@contextlib.contextmanager
def complete_folder(out: Path, work: Path) -> Iterator[Path]:
    """Yield the new, empty folder `work`; it becomes `out` when the block ends, and goes if it fails."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    finalize(work, out)


@contextlib.contextmanager
def new_folder(
    out: Path, *, force: bool | None = None, fingerprint: str | None = None
) -> Iterator[Path]:
    """Yield a work folder that becomes `out` when the block ends; other processes are kept out.

    With a `fingerprint`, work that was interrupted (Ctrl-C, kill -9) is kept, and continued by the
    next call with the same one.

    Raises:
        CheckpointError: `out` holds something and `force` isn't true, or another process writes it.
    """
    with locked(out.parent, out.name, remedy="choose another folder"):
        try:
            require_new(out, force=force)
            if fingerprint is None:
                with complete_folder(out, work_folder(out)) as work:
                    yield work
            else:
                work, _ = open_work(out, fingerprint)
                try:
                    yield work
                except DualignError:
                    shutil.rmtree(work, ignore_errors=True)
                    raise
                finalize(work, out)
        finally:
            _lock_file(out.parent, out.name).unlink(missing_ok=True)


def _lock_file(folder: Path, name: str) -> Path:
    return folder / (".lock" if name == "running" else f".{name}.lock")


@contextlib.contextmanager
def locked(
    folder: Path, name: str = "running", *, wait: float = 0, remedy: str = "set another output_dir"
) -> Iterator[None]:
    """Hold a folder, or the output `name` in it; the kernel releases it however the process ends.

    Raises:
        CheckpointError: another process holds it, and still does after `wait` seconds.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / f".{name}.json"
    lock = FileLock(_lock_file(folder, name), timeout=wait)
    try:
        lock.acquire()
    except Timeout:
        holder = json.loads(owner.read_text(encoding="utf-8")) if owner.is_file() else {}
        output = folder if name in ("running", LAUNCHED) else folder / name
        raise CheckpointError(
            f"{output}: another run is writing here (process {holder.get('pid', '?')} on "
            f"{holder.get('host', '?')}); wait for it, stop it, or {remedy}"
        ) from None
    try:
        write_json(owner, {"pid": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
