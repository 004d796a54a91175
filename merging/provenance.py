"""merge.json: what the weights beside it were made of, to the byte."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dualign.checkpoints.shards import processors
from dualign.merging.config import Merge
from dualign.merging.plan import Job
from dualign.rundir import write_json

MERGE_JSON = "merge.json"
SCHEMA = 1


def sha256(file: Path) -> str:
    """The file's SHA-256, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hashes(files: Sequence[Path], threads: int | None = None) -> dict[Path, str]:
    """The SHA-256 of each file; several are read at once."""
    with ThreadPoolExecutor(threads or processors()) as pool:
        return dict(zip(files, pool.map(sha256, files), strict=True))


def weights_applied(jobs: Mapping[str, Job]) -> list[dict[str, Any]]:
    """The parameters as they were used, each set of them once, with the tensors that got it."""
    groups: dict[str, dict[str, Any]] = {}
    for name, job in jobs.items():
        used = {
            "models": [model for model, _ in job.inputs],
            "base_model": job.base[0] if job.base else None,
            **{key: list(values) for key, values in job.each.items()},
            **job.shared,
        }
        if job.method == "linear" and job.shared["normalize"]:
            from dualign.merging.methods.linear import normalized

            used["applied"] = normalized([float(weight) for weight in job.each["weight"]])
        groups.setdefault(repr(used), {**used, "tensors": []})["tensors"].append(name)
    return list(groups.values())


def write_merge_json(work: Path, merge: Merge, record: Mapping[str, Any]) -> None:
    """Write it beside the weights."""
    write_json(
        work / MERGE_JSON,
        {"schema": SCHEMA, **record, "config": merge.file, "versions": _versions()},
    )


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in ("dualign", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            from dualign import __version__

            found[package] = __version__
    return found
