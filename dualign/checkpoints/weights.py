"""From a path to weights: a plain model folder, or an adapter on a base.

The base may be an adapter itself, as a stage that trains on another stage's adapter leaves it.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dualign.checkpoints.checkpoint import Checkpoint, Weights
from dualign.checkpoints.embedded import embedded_model
from dualign.errors import CheckpointError

_NF4 = re.compile(r"nf4(-(?P<dtype>bfloat16|float16|float32))?:")


def open_weights(model: Path | str, *, allow_pickle: bool = False) -> Weights:
    """The weights of a folder, hub id or embedded model, its adapters folded in as they are read.

    `base+adapter` names the base of an adapter. `nf4:MODEL` (or nf4-bfloat16:MODEL, with the type that it was trained
    in) has the base of MODEL as QLoRA training saw it. Only headers and adapters are read now. `allow_pickle` reads
    pytorch_model.bin where there are no safetensors.

    Raises:
        CheckpointError: a folder or file is missing or broken.
        MergeError: the weights can't be used exactly as the model would use them.
    """
    name = str(model)
    nf4 = _NF4.match(name)
    name = name[nf4.end() :] if nf4 else name
    open_base = _base_opener(nf4, pickles=allow_pickle)
    if "+" in name and not Path(name).exists():
        return _with_adapters(name, open_base, pickles=allow_pickle)
    return _open(find_folder(name, pickles=allow_pickle), (), open_base)


OpenBase = Callable[[Path], Weights]
"""how the innermost base is read"""


def _base_opener(nf4: re.Match[str] | None, *, pickles: bool) -> OpenBase:
    if nf4 is None:
        return lambda folder: Checkpoint(folder, allow_pickle=pickles)
    from dualign.checkpoints.nf4 import RoundTripped

    return lambda folder: RoundTripped(Checkpoint(folder, allow_pickle=pickles), dtype=nf4["dtype"])


def _with_adapters(name: str, open_base: OpenBase, *, pickles: bool) -> Weights:
    """`base+adapter`, as mergekit writes it: the base is the one named here."""
    from dualign.checkpoints.folding import Adapted
    from dualign.checkpoints.lora import read_adapter

    base, *adapters = name.split("+")
    weights = _open(find_folder(base, pickles=pickles), (), open_base)
    for adapter in adapters:
        weights = Adapted(weights, read_adapter(_require_folder(find_folder(adapter))))
    return weights


def find_folder(name: str, *, revision: str | None = None, pickles: bool = False) -> Path:
    """The folder of a path, an embedded model or a hub id, which may end in @revision; a path may not be there."""
    if name.startswith("embedded:"):
        return embedded_model(name)
    folder = Path(name)
    is_path = folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if folder.exists() or is_path:
        return folder
    name, _, wanted = name.partition("@")
    return from_hub(name, revision=revision or wanted or None, pickles=pickles)


def _open(folder: Path, outer: tuple[Path, ...], open_base: OpenBase) -> Weights:
    if _require_folder(folder).resolve() in outer:
        raise CheckpointError(
            f"{folder}: the adapter names itself as its base: {' -> '.join(map(str, outer))}"
        )
    if not (folder / "adapter_config.json").is_file():
        return open_base(folder)
    # Only adapters need torch.
    from dualign.checkpoints.folding import Adapted
    from dualign.checkpoints.lora import read_adapter

    adapter = read_adapter(folder)
    base = find_base(folder, adapter.config)
    return Adapted(_open(base, (*outer, folder.resolve()), open_base), adapter)


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
        return _require_folder(find_folder(name, revision=config.get("revision")))
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
