"""What may go from the disk, what is lost by that, and its removal."""

import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from dualign.errors import CheckpointError, ConfigError
from dualign.rundir import cache_folder, tokens_folder, work_folder
from dualign.storage.runs import RunFolder, is_written, size_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Removable:
    """A file or folder that may go; `size` in bytes."""

    kind: str
    path: Path
    size: int
    cost: str
    """what is lost by that"""


def removables(runs: Collection[RunFolder]) -> list[Removable]:
    """Return what may go: what the runs left behind, and the caches of this machine.

    Finished stages are never among it, nor anything in a folder that a run is writing.
    """
    return [
        Removable(kind=kind, path=path, size=size_of(path), cost=cost)
        for kind, (cost, paths) in _KINDS.items()
        for path in paths(runs)
    ]


def read_kinds(text: str) -> set[str]:
    """Return the kinds that a list with commas names.

    Raises:
        ConfigError: one of them isn't known.
    """
    kinds = {name.strip() for name in text.split(",")}
    if unknown := sorted(kinds - set(_KINDS)):
        raise ConfigError(f"--delete {unknown[0]!r}: expected some of {', '.join(_KINDS)}")
    return kinds


def remove(items: Collection[Removable]) -> int:
    """Delete them, and return the bytes that were freed.

    Raises:
        CheckpointError: a run has begun to write in a folder of one, or the system refuses.
    """
    freed = 0
    for item in items:
        if is_written(item.path.parent):
            raise CheckpointError(
                f"{item.path}: a run is writing in {item.path.parent} now; {freed:,} bytes were freed "
                "before. Run `dualign clean` again when it is done"
            )
        try:
            shutil.rmtree(item.path) if item.path.is_dir() else item.path.unlink()
        except OSError as error:
            raise CheckpointError(f"{item.path}: can't be deleted ({error})") from None
        freed += item.size
    return freed


def _leftovers(runs: Collection[RunFolder]) -> Iterator[Path]:
    """Yield what a stage replaced, and the answers of sweeps that are done."""
    for run in _idle(runs):
        yield from sorted(run.path.glob(".*.old"))
        for stage in run.stages:
            if (run.path / stage.name / "sweep.json").is_file():
                names = (f".{stage.name}.{what}.jsonl" for what in ("answers", "scores"))
                yield from (path for name in names if (path := run.path / name).is_file())


def _unfinished(runs: Collection[RunFolder]) -> Iterator[Path]:
    """Yield the work folders of stages that were cut off."""
    for run in _idle(runs):
        folders = (work_folder(run.path / stage.name) for stage in run.stages)
        yield from (folder for folder in folders if folder.is_dir())


def _idle(runs: Collection[RunFolder]) -> Iterator[RunFolder]:
    return (run for run in runs if not run.is_running)


def _tokens(_: Collection[RunFolder]) -> Iterator[Path]:
    if (folder := tokens_folder()).is_dir():
        yield folder


def _models(_: Collection[RunFolder]) -> Iterator[Path]:
    yield from sorted(path for path in cache_folder().glob("smollm2-*") if path.is_dir())


def _extensions(_: Collection[RunFolder]) -> Iterator[Path]:
    if (folder := cache_folder() / "torch_extensions").is_dir():
        yield folder


_KINDS: dict[str, tuple[str, Callable[[Collection[RunFolder]], Iterator[Path]]]] = {
    "leftovers": ("nothing: a newer result is there", _leftovers),
    "unfinished": ("the stage starts anew instead of resuming", _unfinished),
    "tokens": ("the next run prepares its rows again", _tokens),
    "models": ("the embedded model is converted again", _models),
    "extensions": ("the next ZeRO launch compiles for a minute", _extensions),
}
"""Each kind of what may go: its price, and where it is."""
