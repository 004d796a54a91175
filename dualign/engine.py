"""Run the stages of a recipe in order: skip finished ones, resume interrupted ones, redo changed ones.

A stage's fingerprint is the hash of all that its result depends on (fingerprint.py). It stands in
run.json of the finished stage and in stage.json of the work folder:

    run.json has it             done       skipped
    stage.json has it           cut off    resumed
    run.json has another one    changed    started again
    neither is there            new        started
"""

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from dualign.deepspeed_ops import ops_of_environment, prepare_ops
from dualign.distributed import gather, is_main_process, run_on_main_process
from dualign.environment import peak_memory_mb, versions
from dualign.errors import CheckpointError, ConfigError, OutOfMemoryError
from dualign.fingerprint import Digests, fingerprint
from dualign.lifetime import LAUNCHER_PID, end_with_launcher
from dualign.machines import Meeting
from dualign.recipe import Recipe, StageEntry, keep_card, references, replace_texts
from dualign.roll_call import call_roll, card
from dualign.rundir import (
    LAUNCHED,
    RUN_JSON,
    Outcome,
    Paused,
    finalize,
    locked,
    open_work,
    read_paused,
    read_run,
    work_folder,
    write_json,
    write_paused,
)
from dualign.stage_launch import follow, launch_stage, machine_of
from dualign.stages import stage_kind

_LESS_MEMORY = (
    "; try a smaller train.per_device_train_batch_size (with more gradient_accumulation_steps), "
    "train.gradient_checkpointing: true, a lower data.max_tokens, or lora with quantization: nf4; "
    "`dualign plan` estimates the peak"
)
_NO_ROOM = "DefaultCPUAllocator"  # of torch's message, which is a RuntimeError on a CPU


@dataclass(frozen=True, kw_only=True, slots=True)
class StageStatus:
    """A stage's state: done, cut off (will resume), changed (will start again) or new."""

    entry: StageEntry
    fingerprint: str
    run_dir: Path
    state: str


Watch = Callable[[StageStatus, Sequence[StageStatus]], None]


def statuses(
    recipe: Recipe, *, remember: bool = True, digests: Digests | None = None
) -> list[StageStatus]:
    """Return each stage's fingerprint and state. Reads files; imports nothing heavy.

    Args:
        remember: keep the files' digests in the output folder, so that big files are read once.
        digests: of files that several recipes name; None: those of the output folder.
    """
    out = recipe.output_dir
    digests = digests or Digests(out / ".digests.json" if remember else None)
    fingerprints: dict[str, str] = {}
    result = []
    for entry in recipe.stages:
        digest = fingerprints[entry.name] = fingerprint(entry, fingerprints, digests)
        run_dir = out / entry.name
        state = _state(run_dir, digest)
        result.append(StageStatus(entry=entry, fingerprint=digest, run_dir=run_dir, state=state))
    if remember and out.is_dir():
        digests.save()
    return result


def _state(run_dir: Path, expected: str) -> str:
    finished = read_run(run_dir).get("fingerprint")
    if finished == expected:
        return "done"
    if read_run(work_folder(run_dir)).get("fingerprint") == expected:
        return "cut off"
    stage_json = work_folder(run_dir) / "stage.json"
    if stage_json.is_file() and expected in stage_json.read_text(encoding="utf-8"):
        return "cut off"
    return "changed" if finished else "new"


def run(
    recipe: Recipe,
    *,
    only: str | None = None,
    say: Callable[[str], None] = print,
    watch: Watch = lambda status, stages: None,
    machine_rank: int | None = None,
) -> list[Path]:
    """Run every stage, or `only` one whose parents are done, and return the run directories.

    A stage with `pause_at_step` stops there, and no stage after it is started. On several machines
    this is called on each: machine 0 runs the stages, the others their part of those that are
    launched on all, and return nothing.

    Args:
        say: gets a line when a stage starts and ends; ranks other than 0 are silent.
        watch: gets each stage that starts, and all stages as they were at the start of the run.
        machine_rank: the number of this machine of several, where no scheduler says it.

    Raises:
        DualignError: a stage was refused or failed; finished stages stay, and the next run resumes.
    """
    end_with_launcher()
    prepare_ops(ops_of_environment(os.environ))
    if "RANK" in os.environ:
        say = say if is_main_process() else _silent
        return _run_stages(recipe, only=only, say=say, watch=watch)
    machine = machine_of(recipe, only=only, rank=machine_rank)
    if machine is None:
        return _run_stages(recipe, only=only, say=say, watch=watch)
    with Meeting(machine) as meeting:
        own = partial(_card, recipe, machine.rank == 0 and recipe.output_dir.is_dir())
        call_roll(meeting.gather, own, recipe.output_dir, number=machine.rank, noun="machine")
        if machine.rank:
            follow(recipe, meeting)
            return []
        run_dirs = _run_stages(recipe, only=only, say=say, watch=watch, meeting=meeting)
        meeting.call(None)
    return run_dirs


def _run_stages(
    recipe: Recipe,
    *,
    only: str | None,
    say: Callable[[str], None],
    watch: Watch,
    meeting: Meeting | None = None,
) -> list[Path]:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        number = int(os.environ["RANK"])
        own = partial(_card, recipe, number == 0 and recipe.output_dir.is_dir())
        call_roll(gather, own, recipe.output_dir, number=number, noun="rank")
    recipe.output_dir.mkdir(parents=True, exist_ok=True)
    with _locked_output(recipe.output_dir):
        stages = _read_statuses(recipe, is_main_process())
        require_runnable(recipe, stages, only=only)
        if is_main_process():
            keep_card(recipe)
        for number, status in enumerate(stages, start=1):
            label = f"[{number}/{len(stages)}] {status.entry.name} ({status.entry.kind})"
            if status.state == "done":
                say(f"{label}: done before, skipped")
            elif only and status.entry.name != only:
                _require_parents(status, only, recipe)
            else:
                say(f"{label}: {_START[status.state]}")
                watch(status, stages)
                seconds = _run_stage(recipe, status, stages, meeting)
                if paused := _paused(status):
                    say(f"{label}: paused at step {paused.step}; without pause_at_step it goes on")
                    break
                say(f"{label}: finished in {seconds:.0f} s -> {status.run_dir}")
    return [status.run_dir for status in stages]


def _card(recipe: Recipe, first: bool) -> dict[str, Any]:
    return card(_read_statuses(recipe, first))


def _read_statuses(recipe: Recipe, first: bool) -> list[StageStatus]:
    """Return the stages' states; files' digests are read by all processes, and kept by the first."""
    digests = Digests(recipe.output_dir / ".digests.json")
    return statuses(recipe, remember=first, digests=digests)


def require_runnable(
    recipe: Recipe, stages: list[StageStatus], *, only: str | None = None
) -> list[StageStatus]:
    """Return the stages, if those that aren't done could run right.

    What depends on an earlier stage that isn't done is left to the start of the stage itself.

    Raises:
        ConfigError: with every reason, by stage and key.
    """
    run_dirs = {status.entry.name: status.run_dir for status in stages}
    issues: list[str] = []
    for status in stages:
        issues += _other_type(status)
        if status.state != "done" and only in (None, status.entry.name):
            paths = {
                text: str(path)
                for text, ref in references(status.entry.config).items()
                if (path := run_dirs[ref.name].resolve() / ref.path).exists()
            }
            issues += _issues(status.entry, replace_texts(status.entry.config, paths))
    _raise_issues(recipe, issues)
    return stages


def _other_type(status: StageStatus) -> Iterator[str]:
    """Refuse a finished stage whose weights `dtype: auto` made of another type than the recipe names now.

    `auto` has the fingerprint of its predecessor, float32, so that the stage counts as done.
    """
    if status.state != "done" or not stage_kind(status.entry.kind).trains:
        return
    record = read_run(status.run_dir)
    trained, dtype = record.get("metrics", {}).get("dtype"), status.entry.config.dtype
    if record["config"].get("dtype") == "auto" and dtype != "auto" and trained not in (None, dtype):
        yield (
            f"  stage {status.entry.name}: dtype: {status.run_dir} was trained with {trained} weights "
            f"(dtype: auto), the recipe now says {dtype}: delete that folder to train again, or remove dtype"
        )


def _issues(entry: StageEntry, config: Any) -> list[str]:
    issues = stage_kind(entry.kind).issues(config)
    return [f"  stage {entry.name}: {key}: {message}" for key, message in issues]


def _raise_issues(recipe: Recipe, issues: Sequence[str]) -> None:
    if issues:
        count = f"{len(issues)} problem{'s' if len(issues) > 1 else ''}"
        raise ConfigError("\n".join([f"{recipe.file}: {count}; nothing was started", *issues]))


@contextmanager
def _locked_output(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder.

    A launched stage has a lock of its own, since it lives a moment longer than a `dualign run` that
    was killed.
    """
    if not is_main_process():
        yield
    elif LAUNCHER_PID in os.environ:
        with locked(folder, LAUNCHED):
            yield
    else:
        with locked(folder):
            with locked(folder, LAUNCHED, wait=300):
                pass
            yield


def _silent(_text: str) -> None:
    """Silent logger for ranks other than 0."""


_START = {"new": "starting", "cut off": "resuming", "changed": "its inputs changed, starting again"}


def _require_parents(status: StageStatus, only: str, recipe: Recipe) -> None:
    """Refuse to run stage `only` while this stage, which isn't done, is one of its parents."""
    parents = {ref.name for ref in references(recipe.stage(only).config).values()}
    if status.entry.name in parents:
        raise CheckpointError(
            f"{status.run_dir}: stage {only} needs it and it is {status.state}; `dualign run {recipe.file}` makes it"
        )


def _paused(status: StageStatus) -> Paused | None:
    done = read_run(status.run_dir).get("fingerprint") == status.fingerprint
    return None if done else read_paused(status.run_dir)


def _run_stage(
    recipe: Recipe,
    status: StageStatus,
    stages: list[StageStatus],
    meeting: Meeting | None = None,
) -> float:
    """Run a stage, or launch it on many devices; returns the seconds that it took."""
    entry, kind = status.entry, stage_kind(status.entry.kind)
    if kind.launchable and entry.config.launch and "RANK" not in os.environ:
        clock = time.monotonic()
        launch_stage(recipe, entry, meeting)
        return time.monotonic() - clock
    by_name = {stage.entry.name: stage for stage in stages}
    config = _with_paths(entry.config, by_name)
    _raise_issues(recipe, _issues(entry, config))
    work = work_folder(status.run_dir)
    resumed = run_on_main_process(lambda: open_work(status.run_dir, status.fingerprint)[1])
    started, clock = datetime.now(UTC), time.monotonic()
    # run.json is there if an earlier run was killed between writing it and `finalize`.
    if not read_run(work):
        runner = kind.runner
        with _process_of_its_own(), _memory_in_words(entry):
            outcome: Outcome | Paused = runner(config, work, seed=entry.seed)
        if isinstance(outcome, Paused):
            paused = outcome
            run_on_main_process(lambda: write_paused(work, paused))
            return time.monotonic() - clock
        record = _record(status, by_name, outcome)
        record |= {"started": started.isoformat(timespec="seconds"), "resumed": resumed}
        record |= {"seconds": round(time.monotonic() - clock, 1), "peak_rss_mb": peak_memory_mb()}
        run_on_main_process(lambda: write_json(work / RUN_JSON, record))
    run_on_main_process(lambda: finalize(work, status.run_dir))
    return time.monotonic() - clock


def _with_paths(config: Any, stages: Mapping[str, StageStatus]) -> Any:
    """`stage:sft/x` -> the path of x in the run directory of sft."""
    paths = {}
    for text, ref in references(config).items():
        path = stages[ref.name].run_dir.resolve() / ref.path
        if not path.exists():
            folder = path.parent
            names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
            raise CheckpointError(f"{text}: no {path.name} in {folder} (there: {', '.join(names)})")
        paths[text] = str(path)
    return replace_texts(config, paths)


def _record(
    status: StageStatus, stages: Mapping[str, StageStatus], outcome: Outcome
) -> dict[str, Any]:
    """Return run.json, as docs/architecture.md describes it."""
    entry = status.entry
    parents = dict.fromkeys(ref.name for ref in references(entry.config).values())
    return {
        "schema": 1,
        "name": entry.name,
        "kind": entry.kind,
        "fingerprint": status.fingerprint,
        "seed": entry.seed,
        "config": asdict(entry.config),
        "parents": {name: stages[name].fingerprint for name in parents},
        "data": list(outcome.data),
        "rows": outcome.rows,
        "metrics": dict(outcome.metrics),
        "checks": dict(outcome.checks),
        "versions": versions(),
    }


@contextmanager
def _process_of_its_own() -> Iterator[None]:
    """Let a stage find the process as if it were the first one in it.

    What earlier stages left in memory is freed, peaks start anew, and `train.tf32` ends with its stage:
    transformers sets it for the whole process, and later stages would evaluate with rounded products.
    """
    gc.collect()  # a trainer is part of cycles, and holds its model
    with suppress(OSError):  # not Linux: the peak is that of the process
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    torch: Any = sys.modules.get("torch")  # a stage that needs none doesn't import it
    if torch is None:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    precision = torch.backends.fp32_precision
    try:
        yield
    finally:
        torch.backends.fp32_precision = precision


@contextmanager
def _memory_in_words(entry: StageEntry) -> Iterator[None]:
    """Turn a device's or this machine's lack of memory into a message.

    Raises:
        OutOfMemoryError: there was no room.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        torch: Any = sys.modules.get("torch")
        words = " ".join(str(error).split()) or "out of memory"
        on_device = torch is not None and isinstance(error, torch.OutOfMemoryError)
        if not on_device and isinstance(error, RuntimeError) and _NO_ROOM not in words:
            raise
        hint = _LESS_MEMORY if stage_kind(entry.kind).trains else ""
        raise OutOfMemoryError(
            f"stage {entry.name}: no memory left: {words[:300]}{hint}"
        ) from error
