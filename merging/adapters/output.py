"""The folder of a new adapter: complete or not there, with a record of what it was made of."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import fsum, sqrt
from pathlib import Path
from typing import Any

from dualign import __version__
from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.shards import TOKENIZER_FILES
from dualign.errors import CheckpointError, MergeError
from dualign.fingerprint import Digests
from dualign.merging.adapters.lowrank import LowRank
from dualign.merging.provenance import file_hashes
from dualign.merging.verify import require_hashes
from dualign.rundir import write_json

ADAPTER_JSON = "adapter.json"
SCHEMA = 1
_FILES = ("adapter_model.safetensors", "adapter_config.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """What is left of one module's change."""

    rank: int
    norm: float
    """the Frobenius norm of the change that was meant"""
    error: float
    """that of what is missing"""
    values: tuple[float, ...] = ()
    """the singular values that are known; none when nothing was cut"""

    @property
    def relative(self) -> float:
        return self.error / self.norm if self.norm else 0.0


def kept_of(found: LowRank) -> Kept:
    """The account of a truncation."""
    return Kept(
        rank=len(found.A_RI),
        norm=found.norm,
        error=found.error,
        values=tuple(map(float, found.values)),
    )


def overall(kept: Mapping[str, Kept]) -> float:
    """The relative Frobenius error of all modules taken together."""
    norm = sqrt(fsum(one.norm**2 for one in kept.values()))
    return sqrt(fsum(one.error**2 for one in kept.values())) / norm if norm else 0.0


def by_rank(kept: Mapping[str, Kept]) -> dict[int, float]:
    """The overall relative error if every module were cut at rank 1, 2, 4, ... as far as that is known."""
    if not all(one.values for one in kept.values()):
        return {}
    # Of large layers only the leading values are known; of the others all, and what follows is zero.
    partly = [
        one for one in kept.values() if fsum(v**2 for v in one.values) < 0.999999 * one.norm**2
    ]
    known = min(
        (len(one.values) for one in partly), default=max(len(one.values) for one in kept.values())
    )
    square = fsum(one.norm**2 for one in kept.values())
    found: dict[int, float] = {}
    for rank in (2**power for power in range(known.bit_length()) if square):
        held = fsum(value**2 for one in kept.values() for value in one.values[:rank])
        found[rank] = sqrt(max(1 - held / square, 0))
    return found


def copy_tokenizer(folders: Sequence[Path], work: Path, *, chosen: Path | None = None) -> None:
    """Copy tokenizer, template and generation settings, which must be the same wherever they are.

    Raises:
        MergeError: they differ, and none of the folders was chosen.
    """
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        files = [one / name for one in ([chosen] if chosen else folders) if (one / name).is_file()]
        for other in files[1:]:
            if other.read_bytes() != files[0].read_bytes():
                raise MergeError(
                    f"{other} differs from {files[0]}; say whose is meant with --tokenizer-from"
                )
        if files:
            shutil.copyfile(files[0], work / name)


def write_record(
    work: Path,
    about: Mapping[str, Any],
    inputs: Mapping[str, Sequence[Path]],
    kept: Mapping[str, Kept],
) -> dict[str, Any]:
    """Write adapter.json: hashes of what went in and came out, and the error of each module."""
    outputs = [work / name for name in _FILES]
    digests = file_hashes(
        [*(file for files in inputs.values() for file in files), *outputs], Digests()
    )
    record: dict[str, Any] = {
        "schema": SCHEMA,
        **about,
        "inputs": [
            {"model": name, "sha256": {str(file): digests[file] for file in files}}
            for name, files in inputs.items()
        ],
        "outputs": {file.name: digests[file] for file in outputs},
        "error": overall(kept),
        "error_by_rank": by_rank(kept),
        "modules": {
            path: {"rank": one.rank, "norm": one.norm, "error": one.relative}
            for path, one in kept.items()
        },
        "versions": {"dualign": __version__, "numpy": version("numpy"), "torch": version("torch")},
    }
    write_json(work / ADAPTER_JSON, record)
    return record


def verify_adapter(folder: Path) -> dict[str, int]:
    """How many files of an adapter that was made here, and of its inputs, are what adapter.json says.

    Raises:
        CheckpointError: a file isn't there, or adapter.json isn't whole.
        MergeError: a file was changed.
    """
    record = read_json(folder / ADAPTER_JSON)
    try:
        outputs = {folder / name: digest for name, digest in record["outputs"].items()}
        inputs = {
            Path(file): sha for one in record["inputs"] for file, sha in one["sha256"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / ADAPTER_JSON}: isn't whole ({error!r})") from None
    require_hashes(outputs, "was changed after it was written")
    require_hashes(inputs, "isn't the file that the adapter was made of")
    return {"outputs": len(outputs), "inputs": len(inputs)}
