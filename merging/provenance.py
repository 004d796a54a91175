"""merge.json: what the weights beside it were made of, to the byte."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Event
from typing import Any

from dualign.checkpoints.embedded import cache_folder
from dualign.checkpoints.shards import cpu_count, progress
from dualign.fingerprint import Digests
from dualign.merging.config import Merge
from dualign.merging.plan import TensorPlan
from dualign.rundir import write_json

MERGE_JSON = "merge.json"
SCHEMA = 1


@contextmanager
def remembered() -> Iterator[Digests]:
    """The SHA-256 of files that were merged before and haven't changed since.

    They are kept in $DUALIGN_DIGESTS, else in `digests.json` in dualign's cache.
    """
    given = os.environ.get("DUALIGN_DIGESTS")
    file = Path(given).expanduser() if given else cache_folder() / "digests.json"
    digests = Digests(file)
    yield digests
    with suppress(OSError):  # a cache that can't be written is no reason to fail
        file.parent.mkdir(parents=True, exist_ok=True)
        digests.save()


def hashes(files: Sequence[Path], digests: Digests, threads: int | None = None) -> dict[Path, str]:
    """The SHA-256 of each file."""
    with hashing(files, digests, threads) as found:
        return found()


@contextmanager
def hashing(
    files: Sequence[Path], digests: Digests, threads: int | None = None
) -> Iterator[Callable[[], dict[Path, str]]]:
    """Hash files while the block does something else; what it is given waits for those that are left.

    Several files are read at once, the largest first. When the block fails, so does the hashing.
    """
    sizes = {file: file.stat().st_size for file in files}
    done, over = Counter(dict.fromkeys(files, 0)), Event()

    def digest(file: Path) -> str:
        def advance(size: int) -> None:
            done[file] += size
            if over.is_set():
                raise CancelledError

        return digests.file(file, advance)

    with ThreadPoolExecutor(threads or cpu_count()) as pool:
        ordered = sorted(sizes, key=lambda file: -sizes[file])
        work = {file: pool.submit(digest, file) for file in ordered}

        def found() -> dict[Path, str]:
            with progress(sum(sizes.values()), "hashing", done=done.total()) as bar:
                while wait(work.values(), timeout=0.1).not_done:
                    bar.update(done.total() - bar.n)
            return {file: one.result() for file, one in work.items()}

        try:
            yield found
        except BaseException:
            over.set()
            raise


def weights_applied(jobs: Mapping[str, TensorPlan]) -> list[dict[str, Any]]:
    """The parameters as they were used, each set of them once, with the tensors that got it."""
    groups: dict[str, dict[str, Any]] = {}
    for name, job in jobs.items():
        used = {
            "models": [model for model, _ in job.inputs],
            "base_model": job.base[0] if job.base else None,
            **{key: list(values) for key, values in job.per_model.items()},
            **job.global_,
        }
        if job.method == "linear" and job.global_["normalize"]:
            from dualign.merging.methods.linear import normalized

            used["applied"] = normalized([float(weight) for weight in job.per_model["weight"]])
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
