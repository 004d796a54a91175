"""Checks on the facts of a release: its stages, its bases and their weights, its license."""

from pathlib import Path

from dualign.checkpoints.checkpoint import Checkpoint
from dualign.errors import DualignError
from dualign.hashing import sha256
from dualign.publish.base import EMBEDDED_ON_THE_HUB, Base
from dualign.publish.checklist import CheckOutcome, judge
from dualign.publish.hub.metadata import HubClient, cached_snapshot
from dualign.publish.release import Release

_PIECE = 1 << 20  # elements compared at once


def check_lineage(release: Release, hub: HubClient) -> CheckOutcome:
    """The stages that it was made from are still there, unchanged."""
    lineage = release.lineage
    names = ", ".join(stage.name for stage in lineage.stages)
    measured = ", ".join(stage.name for stage in lineage.evaluations)
    summary = f"made by {names}; measured by {measured or 'no evaluation stage'}"
    return judge(lineage.faults, summary)


def check_base(release: Release, hub: HubClient) -> CheckOutcome:
    """Each base model is named by hub id and commit."""
    faults = []
    bases = dict.fromkeys([*release.bases, *filter(None, [release.published_adapter_base])])
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
    summary = ", ".join(f"{base.id} at {(base.revision or '')[:12]}" for base in bases)
    return judge(faults, summary or "made from no other model")


def check_base_weights(release: Release, hub: HubClient) -> CheckOutcome | None:
    """The base of a published adapter is on the hub with the weights of the training."""
    base = release.published_adapter_base
    if base is None:
        return None
    if base.id is None:
        return CheckOutcome(state="skipped", message="the base has no hub id yet")
    difference = weights_difference(base, hub)
    where = (
        "in a repository of their own, --what weights"
        if release.request.place
        else "--what weights"
    )
    faults = [
        f"{difference}. Publish the weights ({where}), which don't depend on it, or accept it with "
        "--allow base_weights: the card will say it"
    ]
    return judge(faults if difference else (), f"{base.id} has the weights it was trained on")


def weights_difference(base: Base, hub: HubClient) -> str | None:
    """Describe how the hub's weights differ from those trained on; None if they are the same."""
    folder = base.root.folder()
    if folder is None or base.id is None:
        return None
    metadata = hub.metadata(base.id, revision=base.revision)
    try:
        hashes = {sha256(file) for file in Checkpoint(folder).files}
    except DualignError as error:
        return str(error)
    on_hub = metadata.sha256.items() if metadata else ()
    if hashes and hashes <= {sha for name, sha in on_hub if name.endswith(".safetensors")}:
        return None
    snapshot = cached_snapshot(base.id, base.revision or "")
    if snapshot:
        return _first_difference(folder, snapshot)
    if base.root.reference in EMBEDDED_ON_THE_HUB:
        return (
            f"{base.root.reference} is {base.id} after a round trip through 4 bits (Q4_1), so on the "
            "hub's own weights the adapter isn't exact"
        )
    if metadata:
        return f"its weight files have other hashes than {base.id}'s; in its cache they could be compared"
    return f"{base.id} can't be reached, so it isn't known whether its weights are those trained on"


def _first_difference(trained: Path, cached: Path) -> str | None:
    """Compare two checkpoints tensor by tensor, in whatever dtype and file they are stored."""
    import numpy as np

    try:
        a, b = Checkpoint(trained), Checkpoint(cached)
    except DualignError as error:
        return str(error)
    if missing := set(a.entries) ^ set(b.entries):
        return f"only one of them has {min(missing)}"
    for name, entry in a.entries.items():
        if entry.shape != b.entries[name].shape:
            return f"{name} has another shape"
        reader_a, reader_b = a.reader(name), b.reader(name)
        for start in range(0, entry.size, _PIECE):
            stop = min(start + _PIECE, entry.size)
            if not np.array_equal(reader_a.read(start, stop), reader_b.read(start, stop)):
                return f"{name} holds other numbers"
    return None


def check_license(release: Release, hub: HubClient) -> CheckOutcome:
    """The license of the whole is known."""
    license = release.license
    return judge([license.why] if license.id is None else (), f"{license.id}: {license.why}")
