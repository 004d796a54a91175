"""Is a merged folder what its merge.json says? Hashes of every file, and tensors computed again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.checkpoints.checkpoint import read_json
from dualign.errors import CheckpointError, MergeError
from dualign.fingerprint import Digests
from dualign.merging.merge import prepare, recompute
from dualign.merging.provenance import MERGE_JSON, hashes
from dualign.merging.serialization import from_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What was checked, and held."""

    shards: int
    inputs: int
    tensors: tuple[str, ...]


def verify_folder(out: Path, *, tensors: int = 3, seed: int = 0) -> Verdict:
    """Check the shards' and the inputs' hashes, and compute `tensors` tensors again.

    Raises:
        CheckpointError: a file isn't there, or isn't the one that was written or read.
        MergeError: a tensor isn't what the inputs give.
    """
    if not (out / MERGE_JSON).is_file():
        raise CheckpointError(f"{out}: has no {MERGE_JSON}; it wasn't written by dualign merge")
    record = read_json(out / MERGE_JSON)
    try:
        shards = {out / name: digest for name, digest in record["shards"].items()}
        inputs = {
            Path(name): digest for one in record["models"] for name, digest in one["sha256"].items()
        }
        merge, drawn = from_json(record["merge"], file=str(out / MERGE_JSON)), int(record["seed"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{out / MERGE_JSON}: isn't whole ({error!r})") from None
    require_hashes(shards, "was changed after it was written")
    require_hashes(inputs, "isn't the file that was merged")
    prepared = prepare(merge, seed=drawn)
    checked = recompute(out, prepared.weights, count=tensors, seed=seed)
    return Verdict(shards=len(shards), inputs=len(inputs), tensors=checked.tensors)


def require_hashes(expected: Mapping[Path, Any], otherwise: str) -> None:
    """Check files against their SHA-256; `otherwise` says what it means when one differs.

    Raises:
        CheckpointError: a file isn't there.
        MergeError: a file has another hash.
    """
    for file in expected:
        if not file.is_file():
            raise CheckpointError(f"{file}: is gone; it can't be verified without it")
    for file, digest in hashes(list(expected), Digests()).items():
        if digest != expected[file]:
            raise MergeError(f"{file}: {otherwise}: sha256 {digest}, expected {expected[file]}")
