"""Check a merged folder against its merge.json: the hash of every file, and recomputed tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.checkpoints.checkpoint import read_json
from dualign.errors import CheckpointError, MergeError
from dualign.fingerprint import Digests
from dualign.merging.merge import prepare
from dualign.merging.provenance import MERGE_JSON, file_hashes, merge_from_json
from dualign.merging.validate_output import RECOMPUTED_TENSORS, recompute_tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """Numbers of files whose hash is right, and the tensors that were computed again."""

    shards: int
    inputs: int
    tensors: tuple[str, ...]


def verify_folder(out: Path, *, tensors: int = RECOMPUTED_TENSORS, seed: int = 0) -> Verification:
    """Check the hashes of shards and inputs, and compute `tensors` tensors again.

    Raises:
        CheckpointError: a file is missing, or merge.json is broken.
        MergeError: a file has another hash, or a tensor other bytes.
    """
    if not (out / MERGE_JSON).is_file():
        raise CheckpointError(f"{out}: has no {MERGE_JSON}; it wasn't written by dualign merge")
    record = read_json(out / MERGE_JSON)
    try:
        shards = {out / name: digest for name, digest in record["shards"].items()}
        inputs = {
            Path(name): digest
            for model in record["models"]
            for name, digest in model["sha256"].items()
        }
        merge = merge_from_json(record["merge"], file=str(out / MERGE_JSON))
        merge_seed = int(record["seed"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{out / MERGE_JSON}: isn't whole ({error!r})") from None
    require_hashes(shards, "was changed after it was written")
    require_hashes(inputs, "isn't the file that was merged")
    prepared = prepare(merge, seed=merge_seed)
    recomputed = recompute_tensors(out, prepared.weights, count=tensors, seed=seed)
    return Verification(shards=len(shards), inputs=len(inputs), tensors=recomputed)


def require_hashes(expected: Mapping[Path, Any], meaning: str) -> None:
    """Check files against their SHA-256; `meaning` says in the error what a difference means.

    Raises:
        CheckpointError: a file is missing.
        MergeError: a file has another hash.
    """
    for file in expected:
        if not file.is_file():
            raise CheckpointError(f"{file}: is gone; it can't be verified without it")
    for file, digest in file_hashes(list(expected), Digests()).items():
        if digest != expected[file]:
            raise MergeError(f"{file}: {meaning}: sha256 {digest}, expected {expected[file]}")
