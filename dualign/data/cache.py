"""Prepared data kept on disk, under a key made of all that it depends on.

The key is over the bytes of the rows, the data settings, the seed, the template with what it is
given, the tokenizer and dualign's own code of the data path: changing one of them gives another
key, and nothing else does; neither a moved file nor another number of processes.

Processes that ask for one key at once (the ranks of a launch) take turns at a lock: the first
prepares, the others read what it left. A folder appears under its name when it is whole, and
pruning.py deletes what was used longest ago.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from filelock import FileLock

from dualign.checkpoints.embedded import cache_folder
from dualign.data.config import DataConfig, SourceConfig
from dualign.data.pruning import make_room, mark_used
from dualign.data.rows.loading import load_source
from dualign.data.rows.source_files import combined_sha256, fingerprint_files, local_files
from dualign.data.rows.sources import source_label
from dualign.data.text.template import ChatTemplate
from dualign.fingerprint import Digests, file_digests
from dualign.rundir import complete_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tables = Mapping[str, datasets.Dataset]
About = Mapping[str, Any]
_ABOUT = "about.json"
_HOW_NOT_WHAT = ("cache", "num_proc")
"""Settings that change how the data is prepared, not what comes out."""


def tokens_folder() -> Path:
    """Where prepared data is kept: $DUALIGN_TOKENS, else `tokens` in dualign's cache."""
    given = os.environ.get("DUALIGN_TOKENS")
    return Path(given).expanduser() if given else cache_folder() / "tokens"


def cache_key(
    kind: str,
    data: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    template: ChatTemplate,
    *,
    seed: int,
    base: Path | None,
) -> str | None:
    """The name under which the data is kept; None if its rows can't be told without reading them
    all (a stream from the hub), or the recipe wants no cache.
    """
    if not data.cache or any(_is_hub_stream(source, base) for source in data.sources):
        return None
    settings = {key: value for key, value in asdict(data).items() if key not in _HOW_NOT_WHAT}
    tasks = list(data.decontaminate.tasks) if data.decontaminate else []
    content = {
        "kind": kind,
        "code": _code_of_the_data_path(),
        "libraries": [version(name) for name in ("jinja2", "tokenizers")],
        "settings": settings | {"sources": [_source(one, base) for one in data.sources]},
        "tasks": dict(file_digests({"tasks": tasks}, Digests())),
        "seed": seed,
        "template": [template.text, template.special_tokens, template.template_kwargs],
        "tokenizer": sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "special_tokens": dict(tokenizer.special_tokens_map),
    }
    return sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def kept(key: str, make: Callable[[], tuple[Tables, About]]) -> tuple[Tables, About]:
    """The tables and what is told about them under `key`; made and kept if they aren't there."""
    folder = tokens_folder() / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            _keep(folder, *make())
            make_room(folder.parent, spare=folder)
        mark_used(folder)
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        tables = {
            path.name: datasets.load_from_disk(str(path))
            for path in sorted(folder.iterdir())
            if path.is_dir()
        }
    return tables, about


def _keep(folder: Path, tables: Tables, about: About) -> None:
    with complete_folder(folder, folder.with_suffix(".half")) as half:
        for name, table in tables.items():
            table.save_to_disk(str(half / name))
        (half / _ABOUT).write_text(json.dumps(about), encoding="utf-8")


def _is_hub_stream(source: SourceConfig, base: Path | None) -> bool:
    return source.streaming and not local_files(source.path, base)


def _source(source: SourceConfig, base: Path | None) -> dict[str, Any]:
    """A source by its content. A file counts by its bytes, wherever it lies; its label stays."""
    settings = asdict(source) | {"label": source_label(source)}
    if local_files(source.path, base):
        settings["path"] = combined_sha256(fingerprint_files(source.path, base))
    else:
        settings["rows_of_hub"] = load_source(source)._fingerprint
    return settings


def _code_of_the_data_path() -> str:
    digest, folder = sha256(), Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
