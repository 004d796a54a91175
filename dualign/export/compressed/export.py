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
from dualign.export.both_modes import BothModes, Questions
from dualign.export.calibration import Calibration, calibration
from dualign.export.comparison import ComparisonConfig, compare_exports, plan_questions
from dualign.export.compressed.source import CompressedSource, open_compressed
from dualign.export.compressed.types import CALIBRATION_ROWS, TYPES
from dualign.export.compressed.write import nearest, write_config, write_tensors
from dualign.hashing import hashes_of, sha256
from dualign.rundir import new_folder, require_new, write_json
from dualign.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from dualign.evaluation.config import EvalConfig

_RECORD = "export.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationConfig:
    """Which rows gptq and awq read."""

    file: str | None = None
    """None: those of the SFT stage that the model comes from"""
    rows: int = CALIBRATION_ROWS
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressedPlan:
    """What will be written, read and asked."""

    source: CompressedSource
    calibration: Calibration | None
    questions: "tuple[Questions, EvalConfig] | None"
    """with the limits of answers; None: nothing is compared"""

    @property
    def bytes(self) -> int:
        """Of all tensors that will be written."""
        return sum(spec.nbytes for spec in self.source.specs())

    def lines(self) -> list[str]:
        """Return what is read and asked, in words."""
        lines = []
        if self.calibration is not None:
            record = self.calibration.record()
            counts = (
                f"{of_mode['rows']} of {of_mode['available']} in {mode} ({of_mode['tokens']:,} tokens)"
                for mode, of_mode in record["modes"].items()
            )
            lines.append(f"reads     rows of {record['from']}: {', '.join(counts)}")
        origin = "nothing" if self.questions is None else self.questions[0].origin
        return [*lines, f"asks      {origin}"]


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
    plan = plan_compressed(model, type=type, rows=rows, comparison=comparison)
    _require_room(out, plan)
    weights = hashes_of(plan.source.weights.files)
    with new_folder(out, force=force) as work:
        _write(plan.source, plan.calibration, work)
        compared = None if comparison is None else _compare(plan, work, comparison)
        files = {file.name: sha256(file) for file in sorted(work.glob("*.safetensors"))}
        result = CompressedExport(
            model=model,
            weights=weights,
            type=type,
            files=files,
            bytes=sum((work / file).stat().st_size for file in files),
            calibration=plan.calibration,
            both_modes=compared,
        )
        write_json(work / _RECORD, _record(result))
    return result


def plan_compressed(
    model: str,
    *,
    type: str,
    rows: CalibrationConfig | None = None,
    comparison: ComparisonConfig | None = None,
) -> CompressedPlan:
    """Read all that an export reads but the weights: rows, and what both models will be asked.

    Args:
        comparison: None: nothing is asked.

    Raises:
        DualignError: the type doesn't suit the model, there are no rows to read, or a task can't be
            asked.
    """
    from dualign.models.loading import open_model

    source = open_compressed(model, TYPES[type])
    questions = None if comparison is None else plan_questions(open_model(model), comparison)
    settings, read = rows or CalibrationConfig(), None
    if source.type.calibrated:
        read = calibration(model, settings.file, rows=settings.rows, seed=settings.seed)
    return CompressedPlan(source=source, calibration=read, questions=questions)


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


def _compare(plan: CompressedPlan, folder: Path, settings: ComparisonConfig) -> BothModes:
    """Ask the model and its compressed copy in `folder` in both modes.

    Raises:
        CheckpointError: a mode is worse beyond the bounds, and that isn't allowed.
    """
    from dualign.models.loading import open_model

    assert plan.questions is not None, "it was planned with these settings"
    type = plan.source.type
    model, copy = open_model(plan.source.model), open_model(str(folder), dtype=type.dtype)
    return compare_exports(model, [(type.name, copy)], *plan.questions, settings)[type.name]


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


def _require_room(out: Path, plan: CompressedPlan) -> None:
    needed = plan.bytes
    folder = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{out}: {needed / 1e9:.2f} GB to write, {free / 1e9:.2f} GB free; make room first"
        )
