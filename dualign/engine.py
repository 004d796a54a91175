"""Runs the stages of a recipe in order: skip what is done, resume what was cut off, redo what has changed."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dualign.distributed import HELD, is_first, launch, on_first, stop_with
from dualign.errors import CheckpointError
from dualign.fingerprint import Digests, fingerprint
from dualign.recipe import Recipe, StageEntry, references, replaced
from dualign.rundir import (
    LAUNCHED,
    Outcome,
    finalize,
    locked,
    open_work,
    read_run,
    work_folder,
    write_json,
)
from dualign.stages import stage_kind

_PACKAGES = (
    "dualign",
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "bitsandbytes",
    "deepspeed",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageStatus:
    """Where a stage stands. `state` is done, cut off (will resume), changed (will be redone) or new."""

    entry: StageEntry
    fingerprint: str
    run_dir: Path
    state: str


def statuses(recipe: Recipe, *, remember: bool = True) -> list[StageStatus]:
    """Fingerprint each stage and see what is there. Reads files; imports nothing heavy."""
    out = recipe.output_dir
    digests = Digests(out / ".digests.json" if remember else None)
    prints: dict[str, str] = {}
    found = []
    for entry in recipe.stages:
        prints[entry.name] = fingerprint(entry, prints, digests)
        run_dir = out / entry.name
        state = _state(run_dir, prints[entry.name])
        found.append(
            StageStatus(entry=entry, fingerprint=prints[entry.name], run_dir=run_dir, state=state)
        )
    if remember and out.is_dir():
        digests.save()
    return found


def _state(run_dir: Path, expected: str) -> str:
    found = read_run(run_dir).get("fingerprint")
    if found == expected:
        return "done"
    if read_run(work_folder(run_dir)).get("fingerprint") == expected:
        return "cut off"
    stage_json = work_folder(run_dir) / "stage.json"
    if stage_json.is_file() and expected in stage_json.read_text(encoding="utf-8"):
        return "cut off"
    return "changed" if found else "new"


def run(
    recipe: Recipe,
    *,
    only: str | None = None,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Run every stage (or `only` one, whose parents must be done) and return the run directories.

    Raises:
        DualignError: a stage was refused or failed; finished stages stay, and the next run goes on from there.
    """
    recipe.output_dir.mkdir(parents=True, exist_ok=True)
    if HELD in os.environ:
        stop_with(int(os.environ[HELD]))
    if not is_first():
        say = _nothing
    with _held(recipe.output_dir):
        found = statuses(recipe, remember=is_first())
        for number, status in enumerate(found, start=1):
            label = f"[{number}/{len(found)}] {status.entry.name} ({status.entry.kind})"
            if status.state == "done":
                say(f"{label}: done before, skipped")
            elif only and status.entry.name != only:
                _need_done(status, found, only, recipe)
            else:
                say(f"{label}: {_START[status.state]}")
                seconds = _run_stage(recipe, status, found)
                say(f"{label}: finished in {seconds:.0f} s -> {status.run_dir}")
    return [status.run_dir for status in found]


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder.

    A stage that `dualign run` launched has a lock of its own: it outlives a `dualign run` that was killed by a moment.
    """
    if not is_first():
        yield
    elif HELD in os.environ:
        with locked(folder, LAUNCHED):
            yield
    else:
        with locked(folder):
            with locked(folder, LAUNCHED, wait=30):
                pass
            yield


def _nothing(_text: str) -> None:
    """What the ranks after the first say."""


_START = {"new": "starting", "cut off": "resuming", "changed": "its inputs changed, starting again"}


def _need_done(status: StageStatus, found: list[StageStatus], only: str, recipe: Recipe) -> None:
    wanted = next(one for one in found if one.entry.name == only)
    parents = {ref.name for ref in references(wanted.entry.config).values()}
    if status.entry.name in parents:
        raise CheckpointError(
            f"{status.run_dir}: stage {only} needs it and it is {status.state}; `dualign run {recipe.file}` makes it"
        )


def _run_stage(recipe: Recipe, status: StageStatus, found: list[StageStatus]) -> float:
    entry, kind = status.entry, stage_kind(status.entry.kind)
    if kind.launchable and entry.config.launch and "RANK" not in os.environ:
        return _launch(recipe, entry, kind.command)
    parents = {one.entry.name: one for one in found}
    config = _with_paths(entry.config, parents)
    work = work_folder(status.run_dir)
    resumed = on_first(lambda: open_work(status.run_dir, status.fingerprint)[1])
    started, clock = datetime.now(UTC), time.monotonic()
    _reset_peak()
    if not read_run(work):  # else it was cut off between its last write and its publication
        outcome: Outcome = kind.runner(config, work, seed=entry.seed)
        record = _record(status, parents, outcome)
        record |= {"started": started.isoformat(timespec="seconds"), "resumed": resumed}
        record |= {"seconds": round(time.monotonic() - clock, 1), "peak_rss_mb": _peak_mb()}
        on_first(lambda: write_json(work / "run.json", record))
    on_first(lambda: finalize(work, status.run_dir))
    return time.monotonic() - clock


def _with_paths(config: Any, parents: Mapping[str, StageStatus]) -> Any:
    """`stage:sft/x` -> the path of x in the run directory of sft."""
    paths = {}
    for text, ref in references(config).items():
        path = parents[ref.name].run_dir.resolve() / ref.path
        if not path.exists():
            there = (
                sorted(one.name for one in path.parent.iterdir()) if path.parent.is_dir() else []
            )
            raise CheckpointError(
                f"{text}: no {path.name} in {path.parent} (there: {', '.join(there)})"
            )
        paths[text] = str(path)
    return replaced(config, paths)


def _record(
    status: StageStatus, parents: Mapping[str, StageStatus], outcome: Outcome
) -> dict[str, Any]:
    entry = status.entry
    names = dict.fromkeys(ref.name for ref in references(entry.config).values())
    return {
        "schema": 1,
        "name": entry.name,
        "kind": entry.kind,
        "fingerprint": status.fingerprint,
        "seed": entry.seed,
        "config": asdict(entry.config),
        "parents": {name: parents[name].fingerprint for name in names},
        "data": list(outcome.data),
        "rows": outcome.rows,
        "metrics": dict(outcome.metrics),
        "checks": dict(outcome.checks),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _launch(recipe: Recipe, entry: StageEntry, command: str | None) -> float:
    """Start the stage on many devices, as a user would by hand, and wait for it."""
    assert command is not None, f"kind {entry.kind} has `launch` and no command in STAGE_KINDS"
    clock = time.monotonic()
    arguments = [command, str(recipe.file), "--stage", entry.name, *recipe.overrides]
    started, code = launch(entry.config.launch, arguments)
    if code:
        raise CheckpointError(
            f"stage {entry.name}: {started} exited with {code}; its messages are above"
        )
    return time.monotonic() - clock


def _reset_peak() -> None:
    """Let the peak of resident memory start anew for this stage (Linux; elsewhere it is the process's peak)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
