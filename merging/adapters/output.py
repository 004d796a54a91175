"""Files beside a new adapter: its tokenizer, and adapter.json with hashes and errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import fsum, sqrt
from pathlib import Path
from typing import Any

from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.shards import TOKENIZER_FILES, copy_files, more_templates
from dualign.errors import CheckpointError, MergeError
from dualign.fingerprint import Digests
from dualign.merging.adapters.lowrank import LowRank
from dualign.merging.provenance import file_hashes
from dualign.merging.verify import require_hashes
from dualign.rundir import write_json
from dualign.version import __version__

_ADAPTER_JSON = "adapter.json"
_SCHEMA = 1
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class TruncationReport:
    """Rank and error of one module's change."""

    rank: int
    norm: float
    """the Frobenius norm of the change before truncation"""
    error: float
    """the Frobenius norm of the part that was dropped"""
    values: tuple[float, ...] = ()
    """the singular values that are known; empty if nothing was truncated"""

    @classmethod
    def of(cls, low_rank: LowRank) -> "TruncationReport":
        """Report a truncation."""
        return cls(
            rank=len(low_rank.A_RI),
            norm=low_rank.norm,
            error=low_rank.error,
            values=tuple(map(float, low_rank.values)),
        )

    @property
    def relative(self) -> float:
        """The error as a share of the norm."""
        return self.error / self.norm if self.norm else 0.0


Reports = Mapping[str, TruncationReport]
"""by module"""


def _relative_error(reports: Reports) -> float:
    """Return the relative Frobenius error of all modules together."""
    norm = sqrt(fsum(report.norm**2 for report in reports.values()))
    return sqrt(fsum(report.error**2 for report in reports.values())) / norm if norm else 0.0


def _error_by_rank(reports: Reports) -> dict[int, float]:
    """Return the relative error of all modules if each were truncated at rank 1, 2, 4, ...

    Ranks beyond the singular values that are known are left out.
    """
    modules = reports.values()
    if not all(module.values for module in modules):
        return {}
    # Of large layers only the leading values are known; of the others all, and zeros follow them.
    partial = [m for m in modules if fsum(v**2 for v in m.values) < 0.999999 * m.norm**2]
    known = min(
        (len(module.values) for module in partial),
        default=max(len(module.values) for module in modules),
    )
    square = fsum(module.norm**2 for module in modules)
    errors: dict[int, float] = {}
    for rank in (2**power for power in range(known.bit_length()) if square):
        kept = fsum(value**2 for module in modules for value in module.values[:rank])
        errors[rank] = sqrt(max(1 - kept / square, 0))
    return errors


def copy_tokenizer(folders: Sequence[Path], work: Path, *, chosen: Path | None = None) -> None:
    """Copy tokenizer, template and generation settings of the adapters.

    Raises:
        MergeError: they differ between `folders`, and none was chosen.
    """
    sources = [chosen] if chosen else folders
    templates = dict.fromkeys(name for folder in sources for name in more_templates(folder))
    for name in (*TOKENIZER_FILES, *templates, "generation_config.json"):
        files = [folder / name for folder in sources if (folder / name).is_file()]
        for other in files[1:]:
            if other.read_bytes() != files[0].read_bytes():
                raise MergeError(
                    f"{other} differs from {files[0]}; say whose is meant with --tokenizer-from"
                )
        copy_files(files[:1], work)


def write_adapter_json(
    work: Path,
    about: Mapping[str, Any],
    inputs: Mapping[str, Sequence[Path]],
    reports: Reports,
) -> dict[str, Any]:
    """Write and return adapter.json: hashes of inputs and outputs, and the error of each module."""
    outputs = [work / name for name in _ADAPTER_FILES]
    files = [*(file for files in inputs.values() for file in files), *outputs]
    digests = file_hashes(files, Digests())
    record: dict[str, Any] = {
        "schema": _SCHEMA,
        **about,
        "inputs": [
            {"model": name, "sha256": {str(file): digests[file] for file in files}}
            for name, files in inputs.items()
        ],
        "outputs": {file.name: digests[file] for file in outputs},
        "error": _relative_error(reports),
        "error_by_rank": _error_by_rank(reports),
        "modules": {
            path: {"rank": report.rank, "norm": report.norm, "error": report.relative}
            for path, report in reports.items()
        },
        "versions": {"dualign": __version__, "numpy": version("numpy"), "torch": version("torch")},
    }
    write_json(work / _ADAPTER_JSON, record)
    return record


def verify_adapter(folder: Path) -> dict[str, int]:
    """Check the hashes in adapter.json; return the numbers of outputs and inputs.

    Raises:
        CheckpointError: a file is missing, or adapter.json is broken.
        MergeError: a file was changed.
    """
    record = read_json(folder / _ADAPTER_JSON)
    try:
        outputs = {folder / name: digest for name, digest in record["outputs"].items()}
        inputs = {
            Path(file): digest
            for model in record["inputs"]
            for file, digest in model["sha256"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / _ADAPTER_JSON}: isn't whole ({error!r})") from None
    require_hashes(outputs, "was changed after it was written")
    require_hashes(inputs, "isn't the file that the adapter was made of")
    return {"outputs": len(outputs), "inputs": len(inputs)}
