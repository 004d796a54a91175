"""From a path to weights: a plain model folder, or an adapter on a base.

The base may be an adapter itself, as a stage that trains on another stage's adapter leaves it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualign.checkpoints.checkpoint import Checkpoint, Weights
from dualign.checkpoints.embedded import embedded_model
from dualign.errors import CheckpointError


def open_weights(model: Path | str, *, allow_pickle: bool = False) -> Weights:
    """The weights of a folder, hub id or embedded model, its adapters folded in as they are read.

    Only headers and adapters are read now. `allow_pickle` reads pytorch_model.bin where there are
    no safetensors.

    Raises:
        CheckpointError: a folder or file is missing or broken.
        MergeError: the weights can't be used exactly as the model would use them.
    """
    name = str(model)
    if "+" in name and not Path(name).exists():
        return _with_adapters(name, pickles=allow_pickle)
    return _open(_find(name, pickles=allow_pickle), (), pickles=allow_pickle)


def _with_adapters(name: str, *, pickles: bool) -> Weights:
    """`base+adapter`, as mergekit writes it: the base is the one named here."""
    from dualign.checkpoints.folding import Adapted
    from dualign.checkpoints.lora import read_adapter

    base, *adapters = name.split("+")
    weights = _open(_find(base, pickles=pickles), (), pickles=pickles)
    for adapter in adapters:
        weights = Adapted(weights, read_adapter(_require_folder(_find(adapter))))
    return weights


def _find(name: str, *, revision: str | None = None, pickles: bool = False) -> Path:
    """The folder of a path, an embedded model or a hub id, which may end in @revision."""
    if name.startswith("embedded:"):
        return embedded_model(name)
    folder = Path(name)
    is_path = folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if folder.exists() or is_path:
        return folder
    name, _, wanted = name.partition("@")
    return from_hub(name, revision=revision or wanted or None, pickles=pickles)


def _open(folder: Path, outer: tuple[Path, ...], *, pickles: bool = False) -> Weights:
    if _require_folder(folder).resolve() in outer:
        raise CheckpointError(
            f"{folder}: the adapter names itself as its base: {' -> '.join(map(str, outer))}"
        )
    if not (folder / "adapter_config.json").is_file():
        return Checkpoint(folder, allow_pickle=pickles)
    # Only adapters need torch.
    from dualign.checkpoints.folding import Adapted
    from dualign.checkpoints.lora import read_adapter

    adapter = read_adapter(folder)
    base = find_base(folder, adapter.config)
    return Adapted(_open(base, (*outer, folder.resolve()), pickles=pickles), adapter)


def find_base(folder: Path, config: Mapping[str, Any]) -> Path:
    """The folder of an adapter's base: a path, an embedded model or a hub id.

    A relative path is seen from the adapter's folder, then from here.

    Raises:
        CheckpointError: it is neither here nor in reach.
    """
    name = str(config.get("base_model_name_or_path") or "")
    if not name:
        raise CheckpointError(
            f"{folder}: adapter_config.json has no base_model_name_or_path; name the base there"
        )
    if (folder / name).is_dir():
        return folder / name
    try:
        return _require_folder(_find(name, revision=config.get("revision")))
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder}/adapter_config.json: base_model_name_or_path: {error}"
        ) from error


def _require_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; expected a model or an adapter")
    return folder


def from_hub(name: str, *, revision: str | None = None, pickles: bool = False) -> Path:
    """The local snapshot of a hub id, fetched if it isn't there and HF_HUB_OFFLINE isn't set.

    Pickles are fetched only when they are asked for.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]
    if pickles:
        wanted.append("pytorch_model*.bin")
    try:
        return Path(str(snapshot_download(name, revision=revision, allow_patterns=wanted)))
    except (HFValidationError, OSError) as error:
        raise CheckpointError(
            f"{name!r} is neither a folder here nor to be had from the hub "
            f"({type(error).__name__}); check the name, or fetch it first and give its path"
        ) from error
