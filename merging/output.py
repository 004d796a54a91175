"""A merge into a folder of its own, which exists only when it is complete."""

import hashlib
import json
from pathlib import Path
from typing import Any

from dualign.merging.card import write_card
from dualign.merging.config import Merge
from dualign.merging.merge import PreparedMerge, prepare, write
from dualign.merging.provenance import merge_to_json
from dualign.rundir import new_folder, require_new
from dualign.version import __version__


def merge_into(
    merge: Merge, out: Path, *, seed: int = 0, threads: int | None = None, force: bool = False
) -> dict[str, Any]:
    """Merge into `out`; return the content of merge.json.

    All checks come first. The files are written beside `out` and renamed when they are on the disk;
    an interrupted run continues after its last finished shard.

    Raises:
        DualignError: the inputs can't be merged; nothing is left behind.
        CheckpointError: `out` exists, and `force` is false.
    """
    require_new(out, force=force)
    prepared = prepare(merge, seed=seed)
    with new_folder(out, force=force, fingerprint=fingerprint(prepared, seed)) as work:
        record = write(prepared, work, seed=seed, threads=threads)
        write_card(work, record, Path(merge.file))
    return record


def fingerprint(prepared: PreparedMerge, seed: int) -> str:
    """Hash everything that the result depends on, the weights by size and time of their files."""
    files = [
        (str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in prepared.weights.files
    ]
    content = json.dumps([__version__, seed, merge_to_json(prepared.merge), files], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
