"""An exported folder: GGUF files, or a checkpoint in fewer bits, made from weights that are on the Hub."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dualign.checkpoints.checkpoint import require_inside
from dualign.checkpoints.shards import more_templates
from dualign.errors import CheckpointError, PublishError
from dualign.publish.base import Base, find_bases, parse_hub_id
from dualign.publish.hub.metadata import HubClient
from dualign.publish.license import License
from dualign.publish.lineage import Root
from dualign.publish.manifest import TOKENIZER_FILES, WEIGHTS
from dualign.publish.release import PublishRequest, Release, license_of_request, with_card

RECORD = "export.json"
Kind = Literal["gguf", "checkpoint"]
_PACKAGES = {
    "compressed-tensors": "compressed-tensors",
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
}
"""`quant_method` of config.json -> what transformers needs to load it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """All facts about the publication of an exported folder."""

    request: PublishRequest
    folder: Path
    kind: Kind
    record: Mapping[str, Any]
    """export.json; empty for a folder that another tool wrote"""
    config: Mapping[str, Any]
    """config.json; empty for GGUF"""
    original: Base
    """the weights on the Hub that it was made from"""
    files: Mapping[str, Path]
    license: License
    left_out: tuple[tuple[str, str], ...]
    faults: tuple[str, ...]
    names: Mapping[str, str]
    """path on this machine -> its public name"""
    hashes: Mapping[str, str] = field(default_factory=dict)
    """weight file -> the sha256 in export.json"""

    @property
    def places(self) -> list[str]:
        """Folders of this machine that no file may name."""
        return [str(self.folder.resolve()), *self.names]

    @property
    def method(self) -> str:
        """What is in it, in a word: `gguf`, or the quantization's method."""
        if self.kind == "gguf":
            return "gguf"
        settings = self.config.get("quantization_config") or {}
        return str(self.record.get("type") or settings.get("quant_method") or "checkpoint")

    @property
    def models(self) -> list[str]:
        """GGUF files that a program loads: all but an importance matrix."""
        matrix = (self.record.get("importance") or {}).get("file")
        return [name for name in self.files if name.endswith(".gguf") and name != matrix]

    @property
    def place(self) -> str:
        """Its folder beside weights: "" is the top, where programs look for GGUF files."""
        return "" if self.kind == "gguf" else re.sub(r"[^\w-]+", "-", self.method)

    @property
    def packages(self) -> list[str]:
        """What has to be installed beside torch and transformers to load it."""
        method = str((self.config.get("quantization_config") or {}).get("quant_method"))
        return [_PACKAGES[method]] if method in _PACKAGES else []


def is_export(folder: Path) -> bool:
    """Return whether a folder was written by `dualign export`."""
    return (folder / RECORD).is_file()


def read_export(request: PublishRequest, hub: HubClient) -> Export:
    """Read an exported folder, and look up the weights that it was made from.

    Raises:
        PublishError: the folder is none, or `quantized_of` isn't a hub id.
    """
    folder = request.run_dir
    assert request.quantized_of
    kind = _kind(folder)
    id, revision = parse_hub_id(request.quantized_of, "--quantized-of")
    if id == request.repo_id:
        raise PublishError(
            f"--quantized-of {id}: is the repository of the weights, which it would overwrite; publish the "
            f"copy under another name, such as {id}-{'GGUF' if kind == 'gguf' else 'FP8'}, or beside the "
            f"weights: dualign publish RUN_DIR {id} --with {folder}"
        )
    (original,) = find_bases([Root(reference=id, revision=revision)], (), hub)
    model = _json(folder / RECORD).get("model")
    if model and Path(str(model)).is_dir():
        # What the recipe says of weights in their own base and license stands on their card.
        request = replace(with_card(request, Path(str(model))), bases=())
    license = license_of_request(request, {original.label: original.license})
    return _open_export(folder, request=request, original=original, license=license, names={})


def read_beside(folder: Path, release: Release) -> Export:
    """Read an exported folder that goes into the repository of the weights that it was made from.

    Raises:
        PublishError: the folder is none.
    """
    request = release.request
    root = Root(reference=request.repo_id, revision=None)
    return _open_export(
        folder,
        request=request,
        original=Base(root=root, id=request.repo_id, revision=None),
        license=release.license,
        names=release.names,
    )


def _open_export(
    folder: Path,
    *,
    request: PublishRequest,
    original: Base,
    license: License,
    names: Mapping[str, str],
) -> Export:
    """Read an exported folder.

    Args:
        original: the weights that it was made from.
        names: path on this machine -> its public name.

    Raises:
        PublishError: the folder is none.
    """
    kind = _kind(folder)
    record = _json(folder / RECORD)
    files = _gguf_files(folder) if kind == "gguf" else _checkpoint_files(folder)
    model, id = str(record.get("model") or ""), str(original.id)
    if Path(model).is_absolute():
        names = {**names, model: id}
    if model and Path(model).is_dir():
        names = {**names, model: id, str(Path(model).resolve()): id}
    return Export(
        request=request,
        folder=folder,
        kind=kind,
        record=record,
        config=_json(folder / "config.json"),
        original=original,
        files=files,
        license=license,
        left_out=tuple(_left_out(folder, files)),
        faults=tuple(_faults(folder, files, kind)),
        names=names,
        hashes={str(entry["file"]): str(entry["sha256"]) for entry in _recorded(record)},
    )


def _recorded(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what export.json says of each file: those of weights, and the importance matrix."""
    matrix = record.get("importance")
    return [*(record.get("files") or ()), *([matrix] if matrix else [])]


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PublishError(f"{file}: not JSON ({error}); export again") from None
    if not isinstance(value, dict):
        raise PublishError(f"{file}: expected an object; export again")
    return value


def _kind(folder: Path) -> Kind:
    if any(folder.glob("*.gguf")):
        return "gguf"
    if (folder / "config.json").is_file():
        return "checkpoint"
    if not folder.is_dir():
        raise PublishError(f"{folder}: no such folder; expected one that `dualign export` wrote")
    raise PublishError(
        f"{folder}: expected a folder that `dualign export` wrote, or a checkpoint in transformers' form: "
        "it has neither .gguf files nor a config.json"
    )


def _gguf_files(folder: Path) -> dict[str, Path]:
    names = [file.name for file in sorted(folder.glob("*.gguf"))]
    names += [name for name in ("Modelfile",) if (folder / name).is_file()]
    return {name: folder / name for name in names}


def _checkpoint_files(folder: Path) -> dict[str, Path]:
    wanted = ["config.json", *TOKENIZER_FILES, *more_templates(folder)]
    wanted += [file.name for file in sorted(folder.iterdir()) if WEIGHTS.fullmatch(file.name)]
    return {name: folder / name for name in wanted if (folder / name).is_file()}


def _left_out(folder: Path, files: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    for file in sorted(folder.iterdir()):
        if file.name not in (*files, RECORD, "README.md") and not file.is_dir():
            yield file.name, "not part of an export"


def _faults(folder: Path, files: Mapping[str, Path], kind: Kind) -> Iterator[str]:
    if kind == "checkpoint":
        if not any(WEIGHTS.fullmatch(name) for name in files):
            yield "model.safetensors is missing"
        for name in ("tokenizer_config.json", "tokenizer.json"):
            if name not in files:
                yield f"{name} is missing: nobody can write a prompt without the tokenizer"
    pickles = [
        file.name for file in folder.iterdir() if re.fullmatch(r".*\.(bin|pt|pth)", file.name)
    ]
    if (
        pickles
        and kind == "checkpoint"
        and not any(name.endswith(".safetensors") for name in files)
    ):
        yield f"the weights are a pickle ({pickles[0]}), which runs code when it is read"
    for name, file in files.items():
        try:
            require_inside(file, folder)
        except CheckpointError as error:
            yield f"{name}: {error}"


def comparisons(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return file -> comparison of both modes; of a checkpoint under the name ""."""
    whole = record.get("both_modes")
    by_file = {
        str(entry.get("file")): entry["both_modes"]
        for entry in record.get("files") or ()
        if isinstance(entry, dict) and entry.get("both_modes")
    }
    return {**({"": whole} if whole else {}), **by_file}
