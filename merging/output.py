"""A merge on its own: into a folder that is there when it is complete, and not before."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dualign import __version__
from dualign.errors import CheckpointError, DualignError
from dualign.merging.card import write_card
from dualign.merging.config import Merge
from dualign.merging.merge import Prepared, prepare, write
from dualign.merging.serialization import to_json
from dualign.rundir import open_work, publish


def merge_into(
    merge: Merge, out: Path, *, seed: int = 0, threads: int | None = None, force: bool = False
) -> dict[str, Any]:
    """Merge into `out`; returns what merge.json says.

    Everything is checked first. The work happens beside `out`, which gets its name when all is on
    the disk; a run that was cut off is taken up after the last shard it finished.

    Raises:
        DualignError: the inputs can't be merged; nothing is left behind.
        CheckpointError: `out` is there, and `force` is false.
    """
    if out.exists() and not force and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out}: is there already; choose another folder, or use --force")
    prepared = prepare(merge, seed=seed)
    work, _ = open_work(out, fingerprint(prepared, seed))
    with _alone(work):
        try:
            record = write(prepared, work, seed=seed, threads=threads)
            write_card(work, record, Path(merge.file))
        except DualignError:
            shutil.rmtree(work, ignore_errors=True)
            raise
        publish(work, out)
    return record


def fingerprint(prepared: Prepared, seed: int) -> str:
    """What the result depends on, without reading the weights: finished shards of it can be kept."""
    files = [
        (str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in prepared.weights.files
    ]
    content = json.dumps([__version__, seed, to_json(prepared.merge), files], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Hold the work folder; the kernel lets go when the process ends, however it ends."""
    handle = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not work.is_dir() or not os.path.samestat(work.stat(), os.fstat(handle)):
            raise BlockingIOError  # one that was writing here has just given its folder its name
        yield
    except BlockingIOError:
        raise CheckpointError(
            f"{work}: another merge is writing here; wait for it, or choose another folder"
        ) from None
    finally:
        os.close(handle)
