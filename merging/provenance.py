"""merge.json: the inputs and settings that made the weights beside it, to the byte."""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Event
from typing import Any

from dualign.checkpoints.shards import cpu_count
from dualign.config import Document, parse
from dualign.fingerprint import Digests
from dualign.merging.config import Merge
from dualign.merging.methods.linear import normalized
from dualign.merging.plan import TensorPlan
from dualign.rundir import cache_folder, write_json
from dualign.terminal import progress

MERGE_JSON = "merge.json"
_SCHEMA = 1


@contextmanager
def digest_cache() -> Iterator[Digests]:
    """Yield the SHA-256 of files that were merged before, and save those that are added to it.

    They are kept in $DUALIGN_DIGESTS, else in `digests.json` in dualign's cache.
    """
    path = os.environ.get("DUALIGN_DIGESTS")
    file = Path(path).expanduser() if path else cache_folder() / "digests.json"
    digests = Digests(file)
    yield digests
    with suppress(OSError):  # a cache that can't be written is no reason to fail
        file.parent.mkdir(parents=True, exist_ok=True)
        digests.save()


class BackgroundHashes:
    """SHA-256 of files, computed by threads while the `with` block does something else.

        with BackgroundHashes(files, digests) as hashes:
            write(...)
            by_file = hashes.wait()

    The largest files are hashed first. If the block fails, the hashing stops.
    """

    def __init__(self, files: Sequence[Path], digests: Digests, threads: int | None = None) -> None:
        self._digests = digests
        self._sizes = {file: file.stat().st_size for file in files}
        self._done = Counter(dict.fromkeys(files, 0))
        self._stop = Event()
        self._pool = ThreadPoolExecutor(threads or cpu_count())
        self._futures: dict[Path, Future[str]] = {}

    def __enter__(self) -> "BackgroundHashes":
        for file in sorted(self._sizes, key=lambda file: -self._sizes[file]):
            self._futures[file] = self._pool.submit(self._hash, file)
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is not None:
            self._stop.set()
        self._pool.shutdown(cancel_futures=failure is not None)

    def _hash(self, file: Path) -> str:
        def advance(size: int) -> None:
            self._done[file] += size
            if self._stop.is_set():
                raise CancelledError

        return self._digests.file(file, advance)

    def wait(self) -> dict[Path, str]:
        """Wait for the files that are left, with a progress bar; return the hash of each file."""
        done = self._done
        with progress(sum(self._sizes.values()), "hashing", done=done.total()) as bar:
            while wait(self._futures.values(), timeout=0.1).not_done:
                bar.update(done.total() - bar.n)
        return {file: future.result() for file, future in self._futures.items()}


def file_hashes(files: Sequence[Path], digests: Digests) -> dict[Path, str]:
    """Return the SHA-256 of each file."""
    with BackgroundHashes(files, digests) as hashes:
        return hashes.wait()


def merge_to_json(merge: Merge) -> dict[str, Any]:
    """Return everything that the result depends on, besides the inputs themselves."""
    inner = {name: merge_to_json(part) for name, part in merge.inner.items()}
    result = {**asdict(merge), "lines": {}, "warnings": [], "inner": inner}
    if merge.context is None:  # a key that came later: hashes of merges without it stay
        del result["context"]
    return result


def merge_from_json(value: Mapping[str, Any], *, file: str) -> Merge:
    """Return the merge that `merge_to_json` wrote.

    Raises:
        ConfigError: `value` isn't a merge; the message names `file`.
    """
    document = Document(file=file)
    merge = parse(Merge, value, document)
    document.raise_problems()
    assert merge is not None, "without problems there is a merge"
    return merge


def parameters_used(plans: Mapping[str, TensorPlan]) -> list[dict[str, Any]]:
    """Return each set of parameters once, with the tensors that it was used for."""
    groups: dict[str, dict[str, Any]] = {}
    for name, plan in plans.items():
        used = {
            "models": [model for model, _ in plan.inputs],
            "base_model": plan.base[0] if plan.base else None,
            **{key: list(values) for key, values in plan.per_model.items()},
            **plan.global_,
        }
        if plan.method == "linear" and plan.global_["normalize"]:
            used["applied"] = normalized([float(weight) for weight in plan.per_model["weight"]])
        groups.setdefault(repr(used), {**used, "tensors": []})["tensors"].append(name)
    return list(groups.values())


def write_merge_json(work: Path, merge: Merge, record: Mapping[str, Any]) -> None:
    """Write the record beside the weights."""
    write_json(
        work / MERGE_JSON,
        {"schema": _SCHEMA, **record, "config": merge.file, "versions": _versions()},
    )


def _versions() -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for package in ("dualign", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            from dualign.version import __version__

            versions[package] = __version__
    return versions
