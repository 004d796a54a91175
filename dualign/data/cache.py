"""Prepared data kept on disk, under a key made of all that it depends on.

The key is over the bytes of the rows, the data settings, the seed, the template with its variables,
the tokenizer and dualign's own code of the data path. A moved file or another number of processes
doesn't change it.

Processes that ask for one key at once (the ranks of a launch) take turns at a lock: the first
prepares, the others read the result. A folder appears under its name when it is whole, and
pruning.py deletes the folders used longest ago.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
from filelock import FileLock

from dualign.data.config import SourceConfig
from dualign.data.pruning import make_room, mark_used
from dualign.data.request import DataRequest
from dualign.data.rows.loading import load_source
from dualign.data.rows.source_files import combined_sha256, fingerprint_files, local_files
from dualign.data.rows.sources import source_label
from dualign.errors import DataError
from dualign.fingerprint import Digests, file_digests
from dualign.rundir import complete_folder, tokens_folder

Tables = Mapping[str, datasets.Dataset]
Metadata = Mapping[str, Any]
Built = tuple[Tables, Metadata]
_METADATA = "about.json"
_NOT_IN_KEY = ("cache", "num_proc")
"""Settings that change how the data is prepared, not the result."""


def cache_key(kind: str, request: DataRequest) -> str | None:
    """Return the name under which the data is kept; None if the recipe wants no cache, or if its
    rows can't be identified without reading them all (a stream from the hub).
    """
    data, base, template, tokenizer = (
        request.data,
        request.base,
        request.template,
        request.tokenizer,
    )
    if not data.cache or any(_is_hub_stream(source, base) for source in data.sources):
        return None
    settings = {key: value for key, value in asdict(data).items() if key not in _NOT_IN_KEY}
    tasks = list(data.decontaminate.tasks) if data.decontaminate else []
    content = {
        "kind": kind,
        "code": _code_digest(),
        "libraries": [version(name) for name in ("jinja2", "tokenizers")],
        "settings": settings | {"sources": [_source(source, base) for source in data.sources]},
        "tasks": dict(file_digests({"tasks": tasks}, Digests())),
        "seed": request.seed,
        "template": [
            template.text,
            template.special_tokens,
            template.template_kwargs,
            template.tool_use,
            str(template.switch),
            template.folds_system,
        ],
        "tokenizer": sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "special_tokens": dict(tokenizer.special_tokens_map),
    }
    return sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def kept(kind: str, request: DataRequest, build: Callable[[DataRequest], Built]) -> Built:
    """Return what `build(request)` makes, from the cache if it is there.

    Raises:
        PartDoneError: this process is a worker. DataError: it is one, and the data has no key under
        which workers could meet.
    """
    key = cache_key(kind, request)
    if request.share is None:
        return cached(key, lambda: build(request)) if key else build(request)
    if key is None:
        raise DataError(
            "workers meet in the cache: they need data.cache: true, and sources other than streams "
            "from the hub"
        )
    folder, parts = tokens_folder() / key, tokens_folder() / f"{key}.parts"
    shared = replace(request, share=replace(request.share, folder=parts))
    if not folder.is_dir() and request.share.worker is not None:
        build(shared)  # without the lock, which workers of one machine would wait for
    result = cached(key, lambda: build(shared))
    shutil.rmtree(parts, ignore_errors=True)
    return result


def cached(key: str, build: Callable[[], Built]) -> Built:
    """Return the cached tables and metadata for `key`, building them on a miss."""
    folder = tokens_folder() / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            _store(folder, *build())
            make_room(folder.parent, spare=folder)
        mark_used(folder)
        metadata = json.loads((folder / _METADATA).read_text(encoding="utf-8"))
        tables = {
            path.name: datasets.load_from_disk(str(path))
            for path in sorted(folder.iterdir())
            if path.is_dir()
        }
    return tables, metadata


def _store(folder: Path, tables: Tables, metadata: Metadata) -> None:
    with complete_folder(folder, folder.with_suffix(".half")) as partial:
        for name, table in tables.items():
            table.save_to_disk(str(partial / name))
        (partial / _METADATA).write_text(json.dumps(metadata), encoding="utf-8")


def _is_hub_stream(source: SourceConfig, base: Path | None) -> bool:
    return source.streaming and not local_files(source.path, base)


def _source(source: SourceConfig, base: Path | None) -> dict[str, Any]:
    """Return a source by its content. A file counts by its bytes, wherever it is; its label stays."""
    settings = asdict(source) | {"label": source_label(source)}
    if local_files(source.path, base):
        settings["path"] = combined_sha256(fingerprint_files(source.path, base))
    else:
        settings["rows_of_hub"] = load_source(source)._fingerprint
    return settings


def _code_digest() -> str:
    digest, folder = sha256(), Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
