"""Checks on the checkpoint's files, before and after they are staged."""

from pathlib import Path

import numpy as np

from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.dtypes import STORED, is_finite, to_float32
from dualign.checkpoints.header import Entry, read_header
from dualign.doctor.doctor import diagnose_model
from dualign.errors import DualignError
from dualign.publish.checklist import CheckOutcome, judge
from dualign.publish.hub.metadata import HubClient
from dualign.publish.release import Release, staged_files

_PIECE = 1 << 22  # elements read at once


def check_files(release: Release, hub: HubClient) -> CheckOutcome:
    """The files that go are a whole checkpoint, and lie in the run directory."""
    manifest = release.manifest
    summary = f"{len(manifest.files)} files of the checkpoint; {len(manifest.left_out)} stay here"
    return judge(manifest.faults, summary)


def check_staging(error: str | None) -> CheckOutcome | None:
    """The files could be copied; nothing is reported if they were."""
    return judge([error], "") if error else None


def check_weights(release: object, folder: Path) -> CheckOutcome:
    """Every tensor is finite, read in pieces."""
    faults: list[str] = []
    count = 0
    for name in staged_files(folder):
        if not name.endswith(".safetensors"):
            continue
        try:
            entries = read_header(folder / name)
        except DualignError as error:
            faults.append(str(error))
            continue
        count += len(entries)
        problems = (_not_finite(tensor, entry) for tensor, entry in entries.items())
        faults += [f"{name}: {problem}" for problem in problems if problem]
    if not count and not faults:
        faults.append("no safetensors file holds a tensor")
    return judge(faults, f"{count} tensors, all finite")


def _not_finite(name: str, entry: Entry) -> str | None:
    if entry.dtype not in STORED or not entry.size:
        return None
    values = np.memmap(
        entry.file, dtype=STORED[entry.dtype], mode="r", offset=entry.offset, shape=(entry.size,)
    )
    for start in range(0, entry.size, _PIECE):
        piece = np.ascontiguousarray(values[start : start + _PIECE])
        if not is_finite(piece, entry.dtype):
            index = start + int(np.flatnonzero(~np.isfinite(to_float32(piece, entry.dtype)))[0])
            return f"{name} holds NaN or infinite values, first at element {index:,}: the model answers nothing"
    return None


def check_code(release: object, folder: Path) -> CheckOutcome:
    """The model loads without code of its own."""
    faults = [
        f"{name} has auto_map: the model needs code to load, and no code is published; save it "
        "in an architecture that transformers knows"
        for name in ("config.json", "tokenizer_config.json")
        if _has_code(folder / name)
    ]
    return judge(faults, "loads without code of its own")


def _has_code(file: Path) -> bool:
    try:
        return bool(read_json(file).get("auto_map"))
    except DualignError:  # missing or damaged: other checks report it
        return False


def check_doctor(release: Release, folder: Path) -> CheckOutcome:
    """`dualign doctor` reports no error for the run directory, nor for the staged folder."""
    try:
        findings = [
            finding
            for directory in (release.lineage.run.path, folder)
            for finding in diagnose_model(str(directory), tensors=True).findings.all()
        ]
    except (OSError, ValueError) as error:  # a file of the tokenizer that doctor can't do without
        return judge([f"can't be examined: {error}"], "")
    faults = dict.fromkeys(
        f"{finding.code}: {finding.message}. {finding.fix}"
        for finding in findings
        if finding.severity == "error"
    )
    shown = [
        fault.replace(f"{folder}/", "").replace(str(folder), "the staged folder")
        for fault in faults
    ]
    return judge(shown, "tokenizer, template, generation_config and config agree")
