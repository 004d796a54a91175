"""What has to be true before anything leaves: each check says what it found, and what to do where it fails."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.dtypes import STORED, is_finite, widen
from dualign.checkpoints.header import Entry, read_header
from dualign.doctor.doctor import examine_directory
from dualign.doctor.findings import Finding
from dualign.errors import DualignError
from dualign.hashing import sha256
from dualign.publish.base import Base, difference
from dualign.publish.checks.secrets import paths_in, secrets_in
from dualign.publish.hub.metadata import Hub
from dualign.publish.lineage import Lineage
from dualign.publish.plan import Plan

State = Literal["ok", "failed", "allowed", "skipped"]
ALLOWED = ("base", "base_weights", "modes", "doctor", "lineage")
"""What --allow may let pass: the card then says so. The other checks keep a repository from being unusable or harmful."""
_PIECE = 1 << 22  # elements read at once
_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One check: what it found. `failed` stops the publication; `skipped` couldn't be looked at."""

    name: str
    state: State
    found: str


def check(name: str, faults: Iterable[str], ok: str) -> Check:
    """Failed with all its faults, one to a line; or ok with what was seen."""
    listed = list(faults)
    if not listed:
        return Check(name=name, state="ok", found=ok)
    more = [f"and {len(listed) - _SHOWN} more"] if len(listed) > _SHOWN else []
    return Check(name=name, state="failed", found="\n".join([*listed[:_SHOWN], *more]))


def lineage_check(lineage: Lineage) -> Check:
    """Whether the stages that it was made from are still there, unchanged."""
    names = ", ".join(stage.name for stage in lineage.stages)
    measured = ", ".join(stage.name for stage in lineage.evaluations)
    told = f"made by {names}; measured by {measured or 'no evaluation stage'}"
    return check("lineage", lineage.faults, told)


def files_check(plan: Plan) -> Check:
    """Whether what goes is a whole checkpoint, in files that lie in the run directory."""
    told = f"{len(plan.files)} files of the checkpoint; {len(plan.left_out)} stay here"
    return check("files", plan.faults, told)


def weights_check(folder: Path, files: Sequence[str]) -> Check:
    """Whether every tensor is finite, read in pieces."""
    faults: list[str] = []
    count = 0
    for name in (one for one in files if one.endswith(".safetensors")):
        try:
            entries = read_header(folder / name)
        except DualignError as error:
            faults.append(str(error))
            continue
        count += len(entries)
        faults += [f"{name}: {bad}" for tensor, e in entries.items() if (bad := _bad(tensor, e))]
    if not count and not faults:
        faults.append("no safetensors file holds a tensor")
    return check("weights", faults, f"{count} tensors, all finite")


def _bad(name: str, entry: Entry) -> str | None:
    import numpy as np

    if entry.dtype not in STORED:
        return None
    width = STORED[entry.dtype]
    values = np.memmap(entry.file, dtype=width, mode="r", offset=entry.offset, shape=(entry.size,)) if entry.size else np.empty(0, width)  # fmt: skip
    for start in range(0, entry.size, _PIECE):
        piece = np.ascontiguousarray(values[start : start + _PIECE])
        if not is_finite(piece, entry.dtype):
            place = start + int(np.flatnonzero(~np.isfinite(widen(piece, entry.dtype)))[0])
            return f"{name} holds NaN or infinite values, first at element {place:,}: the model answers nothing"
    return None


def doctor_check(lineage: Lineage, folder: Path) -> Check:
    """What `dualign doctor` says of the run directory, and of what was staged."""
    try:
        found = _errors(str(lineage.run.path)) + _errors(str(folder))
    except (OSError, ValueError) as error:  # a file of the tokenizer that doctor can't do without
        return check("doctor", [f"can't be examined: {error}"], "")
    faults = list(dict.fromkeys(f"{one.code}: {one.message}. {one.fix}" for one in found))
    shown = [
        one.replace(f"{folder}/", "").replace(str(folder), "the staged folder") for one in faults
    ]
    return check("doctor", shown, "tokenizer, template, generation_config and config agree")


def _errors(folder: str) -> list[Finding]:
    return [one for one in examine_directory(folder).findings.all() if one.severity == "error"]


def code_check(folder: Path) -> Check:
    """Whether the model loads without code of its own."""
    faults = [
        f"{name} has auto_map: the model needs code to load, and no code is published; save it "
        "in an architecture that transformers knows"
        for name in ("config.json", "tokenizer_config.json")
        if _json(folder / name).get("auto_map")
    ]
    return check("code", faults, "loads without code of its own")


def _json(file: Path) -> dict[str, object]:
    try:
        return read_json(file)
    except DualignError:
        return {}


def base_check(bases: Sequence[Base]) -> Check:
    """Whether each model that it started from is named by hub id and commit."""
    faults = []
    for base in bases:
        if base.id is None:
            faults.append(
                f"it starts from {base.root.reference}, which exists on this machine only: say what "
                f"it is on the hub, --base ID@REVISION"
            )
        elif base.revision is None:
            faults.append(
                f"{base.id}: the commit it was trained on isn't known, and main moves: say it, "
                f"--base {base.id}@REVISION"
            )
    named = ", ".join(f"{base.id} at {(base.revision or '')[:12]}" for base in bases)
    return check("base", faults, named or "made from no other model")


def base_weights_check(base: Base, hub: Hub) -> Check:
    """Whether an adapter's base on the hub is what it was trained on."""
    if base.id is None:
        return Check(name="base_weights", state="skipped", found="the base has no hub id yet")
    why = difference(base, hub)
    faults = [
        f"{why}. Publish the weights (--what weights), which don't depend on it, or accept it with "
        "--allow base_weights: the card will say it"
    ]
    return check(
        "base_weights", faults if why else (), f"{base.id} has the weights it was trained on"
    )


def secrets_check(folder: Path, files: Sequence[str], *, token: str | None) -> Check:
    """Whether no file holds a token or a key."""
    leaks = [
        f"{leak}: take it out of the run directory or the recipe, and revoke it if it was ever public"
        for leak in secrets_in(folder, files, token=token)
    ]
    return check("secrets", leaks, f"no token or key in {len(files)} files")


def paths_check(folder: Path, files: Sequence[str], *, own: Sequence[str]) -> Check:
    """Whether no file names a place on this machine."""
    leaks = [
        f"{leak}: of no use to others, and it tells of yours; take it out"
        for leak in paths_in(folder, files, own=own)
    ]
    return check("paths", leaks, "no path of this machine")


def hashes_check(folder: Path, files: Sequence[str], said: Mapping[str, str]) -> Check:
    """Whether run.json has the sha256 of every other file."""
    faults = []
    for name in (one for one in files if one != "run.json"):
        if said.get(name) != sha256(folder / name):
            faults.append(
                f"{name} isn't what run.json has the hash of: it changed while it was checked"
            )
    return check("hashes", faults, f"run.json has the sha256 of {len(said)} files")


def settle(checks: Iterable[Check], allow: frozenset[str]) -> list[Check]:
    """The checks, with failures that the user accepted as `allowed`."""
    return [
        Check(name=one.name, state="allowed", found=one.found)
        if one.state == "failed" and one.name.split(" ")[0] in allow & set(ALLOWED)
        else one
        for one in checks
    ]
