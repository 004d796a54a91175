"""Measurements that later plans reckon with: JSON files in dualign's cache, an entry under the hash of
everything that it depends on.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dualign.rundir import cache_folder, write_json


def key_of(facts: Mapping[str, Any]) -> str:
    """Return the hash of what a measurement depends on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def remembered(name: str, key: str) -> dict[str, Any]:
    """Return an entry of the file; {} if there is none, or the file is missing or damaged."""
    entry = _entries(name).get(key, {})
    return entry if isinstance(entry, dict) else {}


def remember(name: str, key: str, entry: Mapping[str, Any]) -> None:
    """Keep an entry, with the time."""
    _file(name).parent.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(_file(name), _entries(name) | {key: {**entry, "measured": stamp}})


def _file(name: str) -> Path:
    return cache_folder() / name


def _entries(name: str) -> dict[str, Any]:
    try:
        entries = json.loads(_file(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}
