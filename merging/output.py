"""A merge on its own: into a folder that is there when it is complete, and not before."""

import hashlib
import json
from pathlib import Path
from typing import Any

from dualign import __version__
from dualign.merging.card import write_card
from dualign.merging.config import Merge
from dualign.merging.merge import PreparedMerge, prepare, write
from dualign.merging.provenance import merge_to_json
from dualign.rundir import new_folder, require_new


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
    require_new(out, force=force)
    prepared = prepare(merge, seed=seed)
    with new_folder(out, force=force, fingerprint=fingerprint(prepared, seed)) as work:
        record = write(prepared, work, seed=seed, threads=threads)
        write_card(work, record, Path(merge.file))
    return record


def fingerprint(prepared: PreparedMerge, seed: int) -> str:
    """What the result depends on, without reading the weights: finished shards of it can be kept."""
    files = [
        (str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in prepared.weights.files
    ]
    content = json.dumps([__version__, seed, merge_to_json(prepared.merge), files], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
