"""The main path: checkpoint -> weights of a type -> loaded back -> both modes compared -> folder.

dualign export runs/quickstart/merged fp8 --type fp8
vllm serve fp8
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.checkpoints.shards import write_weights
from dualign.errors import CheckpointError
from dualign.export.both_modes import BothModes
from dualign.export.calibration import Calibration, calibration
from dualign.export.comparison import ComparisonConfig, compare_exports
from dualign.export.compressed.source import CompressedSource, open_compressed
from dualign.export.compressed.types import CALIBRATION_ROWS, TYPES
from dualign.export.compressed.write import nearest, write_config, write_tensors
from dualign.export.questions import questions_for
from dualign.hashing import hashes_of, sha256
from dualign.rundir import new_folder, require_new, write_json
from dualign.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

_RECORD = "export.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationConfig:
    """Which rows gptq and awq read."""

    file: str | None = None
    """None: those of the SFT stage that the model comes from"""
    rows: int = CALIBRATION_ROWS
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressedExport:
    """Content of export.json."""

    model: str
    weights: Mapping[str, str]
    """weight files that it was made from, with their SHA-256"""
    type: str
    files: Mapping[str, str]
    """weight files with their SHA-256"""
    bytes: int
    """of the weight files"""
    calibration: Calibration | None
    both_modes: BothModes | None
    """None: not compared"""


def export_compressed(
    model: str,
    out: Path,
    *,
    type: str,
    rows: CalibrationConfig | None = None,
    comparison: ComparisonConfig | None = None,
    force: bool = False,
) -> CompressedExport:
    """Write a checkpoint of a type of `TYPES`, with export.json, into `out`.

    `out` appears once everything is written, loaded back and compared.

    Args:
        comparison: None: compare nothing.

    Raises:
        DualignError: the type doesn't suit the model, or a mode is worse beyond the bounds.
    """
    require_new(out, force=force)
    source = open_compressed(model, TYPES[type])
    _require_room(out, source)
    settings = rows or CalibrationConfig()
    read = None
    if source.type.calibrated:
        read = calibration(model, settings.file, rows=settings.rows, seed=settings.seed)
    weights = hashes_of(source.weights.files)
    with new_folder(out, force=force) as work:
        _write(source, read, work)
        compared = None if comparison is None else _compare(source, work, comparison)
        files = {file.name: sha256(file) for file in sorted(work.glob("*.safetensors"))}
        result = CompressedExport(
            model=model,
            weights=weights,
            type=type,
            files=files,
            bytes=sum((work / file).stat().st_size for file in files),
            calibration=read,
            both_modes=compared,
        )
        write_json(work / _RECORD, _record(result))
    return result


def _record(result: CompressedExport) -> dict[str, Any]:
    """Return the content of export.json."""
    return {
        "schema": 1,
        "dualign": __version__,
        "model": result.model,
        "weights": result.weights,
        "type": result.type,
        "files": [{"file": name, "sha256": digest} for name, digest in result.files.items()],
        "bytes": result.bytes,
        "calibration": result.calibration and result.calibration.record(),
        "both_modes": result.both_modes and result.both_modes.record(),
    }


def size(source: CompressedSource) -> int:
    """Return the bytes of all tensors that will be written."""
    return sum(spec.nbytes for spec in source.specs())


def _compare(source: CompressedSource, folder: Path, settings: ComparisonConfig) -> BothModes:
    """Ask the model and its compressed copy in `folder` in both modes.

    Raises:
        CheckpointError: a mode is worse beyond the bounds, and that isn't allowed.
    """
    from dualign.models.loading import open_model

    model, copy = open_model(source.model), open_model(str(folder), dtype=source.type.dtype)
    questions, config = questions_for(
        source.model, model.tokenizer, settings.tasks, rows=settings.rows, seed=settings.seed
    )
    type = source.type.name
    return compare_exports(model, [(type, copy)], questions, config, settings)[type]


def _write(source: CompressedSource, read: Calibration | None, work: Path) -> None:
    if source.type.method == "cast":
        write_weights(source.weights, work, dtype="bfloat16")
    else:
        write_tensors(source, _tensors(source, read), work)
    write_config(source, work)


def _tensors(source: CompressedSource, read: Calibration | None) -> "Iterator[tuple[str, Tensor]]":
    if read is None:
        return nearest(source)
    from dualign.export.compressed.layers import calibrated
    from dualign.models.loading import load_model

    return calibrated(source, read, load_model(source.model, dtype="float32"))


def _require_room(out: Path, source: CompressedSource) -> None:
    needed = size(source)
    folder = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{out}: {needed / 1e9:.2f} GB to write, {free / 1e9:.2f} GB free; make room first"
        )
