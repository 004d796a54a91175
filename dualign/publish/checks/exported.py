"""Checks on an exported folder: its files are those of the export, and of the weights on the Hub."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from dualign.checkpoints.checkpoint import Checkpoint
from dualign.errors import DualignError
from dualign.hashing import hashes_of, sha256
from dualign.publish.checklist import CheckOutcome, judge
from dualign.publish.checks.files import check_weights
from dualign.publish.earlier import EarlierCopies
from dualign.publish.exported import RECORD, Export, comparisons
from dualign.publish.hub.metadata import HubClient
from dualign.publish.lineage import Root
from dualign.publish.release import PublishRequest


def check_export_files(export: Export, evidence: object) -> CheckOutcome:
    """Every file of the export is there with the bytes that were checked."""
    faults = list(export.faults)
    for name, digest in export.hashes.items():
        if name not in export.files:
            faults.append(f"{name} is in {RECORD} and isn't there: export again")
        elif sha256(export.files[name]) != digest:
            faults.append(f"{name} isn't the file that was exported and checked: export again")
    weights = [name for name in export.files if name.endswith((".gguf", ".safetensors"))]
    if export.record:
        faults += [
            f"{name} isn't in {RECORD}: move it away"
            for name in weights
            if name not in export.hashes
        ]
    proven = f"with the hashes of {RECORD}" if export.record else f"no {RECORD} tells of them"
    return judge(faults, f"{len(export.files)} files, {proven}")


def check_original(export: Export, hub: HubClient) -> CheckOutcome:
    """The weights on the Hub are those that were exported."""
    original, model = export.original, str(export.record.get("model") or "")
    if original.revision is None:
        missing = f"{original.id} can't be found on the Hub, so nobody can compare with it"
        return judge([missing if hub.in_reach else _out_of_reach(export)], "")
    if model.partition("@")[0] == original.id:
        return judge((), f"exported from {original.id} at {original.revision[:12]}")
    fault = _difference(export, hub)
    return judge(
        [f"{fault}; publish the weights first, or accept it with --allow base_weights"]
        if fault
        else (),
        f"{original.id} at {original.revision[:12]} has the weights that were exported",
    )


def _out_of_reach(export: Export) -> str:
    return (
        f"the Hub can't be reached, so it isn't known whether {export.original.id} holds the weights that "
        "were exported: check the network, and whether HF_HUB_OFFLINE is set"
    )


def _difference(export: Export, hub: HubClient) -> str | None:
    """Say how the Hub's weights differ from those exported; None if they are the same bytes."""
    id, model = export.original.id, str(export.record.get("model") or "")
    if not model:
        return f"no {RECORD} says what it was made from, so it isn't known whether that is {id}"
    try:
        weights = export.record.get("weights") or _weights_now(model)
    except DualignError as error:
        return str(error)
    if not weights:
        return f"{model}, which was exported, isn't there any more to be compared with {id}"
    metadata = hub.metadata(str(id), revision=export.original.revision)
    if metadata is None:
        return _out_of_reach(export)
    on_hub = {sha for name, sha in metadata.sha256.items() if "/" not in name}
    other = [Path(name).name for name, sha in weights.items() if sha not in on_hub]
    return (
        f"{id} holds other weights than {Path(model).name}: {', '.join(other)}" if other else None
    )


def _weights_now(model: str) -> dict[str, str]:
    """Return the hashes of a model's weights as they are now: earlier exports didn't keep theirs."""
    folder = Root(reference=model, revision=None).folder()
    return hashes_of(Checkpoint(folder).files) if folder and folder.is_dir() else {}


def check_weights_of_run(export: Export, weights: Mapping[str, str] | str) -> CheckOutcome:
    """The export was made from the weights that are published, to the byte."""
    if isinstance(weights, str):
        return judge([weights], "")
    recorded: Mapping[str, str] = export.record.get("weights") or {}
    name = export.folder.resolve().name  # the card may quote it, and no path of this machine goes
    if not recorded:
        fault = f"{name} doesn't say which weights it was made from ({RECORD}: weights)"
    elif set(recorded.values()) != set(weights.values()):
        fault = (
            f"{name} was made from other weights: {_short(recorded)}, and these are "
            f"{_short(weights)}"
        )
    else:
        return judge((), f"made from these weights: {_short(weights)}")
    return judge([f"{fault}; export again, or accept it with --allow base_weights"], "")


def _short(weights: Mapping[str, str]) -> str:
    """Return files with the start of their hashes: `merged/model.safetensors 1f0c2d3e4f5a`."""
    return ", ".join(f"{name} {sha[:12]}" for name, sha in weights.items())


def check_earlier(earlier: EarlierCopies, request: PublishRequest) -> CheckOutcome | None:
    """What an earlier publication put beside the weights stays if it is of these, and goes if not."""
    if not (earlier.kept or earlier.outdated or earlier.faults):
        return None
    stays = [name for copy in earlier.kept for name in copy.files]
    summary = [f"{', '.join(stays)} on the Hub stay: made from these weights"] if stays else []
    faults = list(earlier.faults)
    if request.card_only:
        faults += [
            f"{name} would stay on the Hub, and the card wouldn't tell of it: publish without --card-only"
            for name in earlier.outdated
        ]
    if gone := earlier.outdated:
        summary.append(f"{', '.join(gone)} on the Hub are deleted: {earlier.why}")
    return judge(faults, "; ".join(summary))


def check_tensors(export: Export, folder: Path) -> CheckOutcome | None:
    """Every tensor of a checkpoint is finite, read in pieces."""
    return None if export.kind == "gguf" else check_weights(export, folder)


def check_gguf(export: Export, folder: Path) -> CheckOutcome | None:
    """GGUF files are whole, and llama.cpp answered as transformers when they were exported."""
    if export.kind != "gguf":
        return None
    faults = [
        fault for name in export.files if name.endswith(".gguf") for fault in _broken(folder / name)
    ]
    unchecked = [
        entry["file"] for entry in export.record.get("files") or () if not entry.get("check")
    ]
    if not export.record or unchecked:
        faults.append(
            f"{', '.join(unchecked) or 'the files'}: never loaded in llama.cpp and compared with transformers: "
            "export without --no-check, or --allow loads"
        )
    return judge(faults, "llama.cpp read and answered as transformers when they were exported")


def _broken(file: Path) -> Iterator[str]:
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(file).tensors
    except (ValueError, OSError, IndexError, KeyError) as error:
        yield f"{file.name}: not a whole GGUF file ({str(error).splitlines()[0]})"
        return
    if not tensors:
        yield f"{file.name} holds no tensor"


def check_both_modes(export: Export, folder: Path) -> CheckOutcome:
    """Neither mode is worse than in the original beyond the bounds of the export."""
    compared = comparisons(export.record)
    if not compared:
        return CheckOutcome(state="skipped", message=f"{RECORD} has no comparison of both modes")
    faults = [
        f"{name + ': ' if name else ''}{fault}"
        for name, result in compared.items()
        for fault in result.get("beyond") or ()
    ]
    return judge(faults, "neither mode is worse than in the original, within the export's bounds")


def check_original_license(export: Export, hub: HubClient) -> CheckOutcome:
    """The license of the copy is known."""
    license = export.license
    return judge([license.why] if license.id is None else (), f"{license.id}: {license.why}")
