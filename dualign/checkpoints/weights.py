"""Open a reference's weights: a plain model folder, or an adapter on a base.

The base may be an adapter itself, after a stage that trained on another stage's adapter.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dualign.checkpoints.checkpoint import Checkpoint, Weights, read_json
from dualign.checkpoints.embedded import embedded_model
from dualign.errors import CheckpointError, MergeError
from dualign.model_ref import ModelRef, adapter_base
from dualign.rundir import RUN_JSON, read_run

_OpenBase = Callable[[Path], Weights]
"""opens the innermost base"""


def open_weights(model: Path | str, *, allow_pickle: bool = False) -> Weights:
    """Open any model that `ModelRef` names; adapters are folded in as the weights are read.

    Only headers and adapters are read now. `allow_pickle` reads pytorch_model.bin where there are
    no safetensors.

    Raises:
        CheckpointError: a folder or file is missing or broken.
        MergeError: the weights can't be used exactly as the model would use them.
    """
    ref = ModelRef.parse(str(model))
    open_base = _base_opener(ref, pickles=allow_pickle)
    weights = _open(find_folder(ref, pickles=allow_pickle), (), open_base)
    for adapter in ref.adapters:
        from dualign.checkpoints.folding import AdaptedWeights
        from dualign.checkpoints.lora import read_adapter

        weights = AdaptedWeights(weights, read_adapter(_require_folder(find_folder(adapter))))
    return weights


def _base_opener(ref: ModelRef, *, pickles: bool) -> _OpenBase:
    if not ref.nf4:
        return lambda folder: Checkpoint(folder, allow_pickle=pickles)
    from dualign.checkpoints.nf4 import NF4Weights

    return lambda folder: NF4Weights(Checkpoint(folder, allow_pickle=pickles), dtype=ref.nf4_dtype)


def find_folder(model: ModelRef | str, *, pickles: bool = False) -> Path:
    """Return the folder of a model, or of its base where adapters are named; a path may not exist.

    A hub id is fetched if it isn't in the cache.
    """
    ref = ModelRef.parse(model) if isinstance(model, str) else model
    if ref.kind == "embedded":
        return embedded_model(ref.name)
    if ref.kind == "hub":
        return from_hub(ref.name, revision=ref.revision, pickles=pickles)
    return Path(ref.name)


def _open(folder: Path, outer: tuple[Path, ...], open_base: _OpenBase) -> Weights:
    if _require_folder(folder).resolve() in outer:
        raise CheckpointError(
            f"{folder}: the adapter names itself as its base: {' -> '.join(map(str, outer))}"
        )
    if not (folder / "adapter_config.json").is_file():
        if not (folder / "config.json").is_file() and (what := why_no_model(folder)):
            raise CheckpointError(f"{folder}: {what}")
        return open_base(folder)
    # Only adapters need torch.
    from dualign.checkpoints.folding import AdaptedWeights
    from dualign.checkpoints.lora import read_adapter

    adapter = read_adapter(folder)
    base = find_base(folder, adapter.config)
    _require_unquantized(folder, base)
    return AdaptedWeights(_open(base, (*outer, folder.resolve()), open_base), adapter)


def _require_unquantized(adapter: Path, base: Path) -> None:
    """Say how to name another base, where the adapter names the quantized copy that it was trained on."""
    file = base / "config.json"
    quantized = read_json(file).get("quantization_config") if file.is_file() else None
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise MergeError(
            f"{adapter}: its base {base} is a quantized checkpoint ({method or 'of unknown method'}); name the 16-bit "
            f"one that it was made from: `dualign adapter fold {adapter} OUT --model BASE`, or "
            f"BASE+{adapter} where a model is named"
        )


def find_base(folder: Path, config: Mapping[str, Any]) -> Path:
    """Return the folder of an adapter's base; `adapter_base` says which that is.

    Raises:
        CheckpointError: there is no such folder, or it can't be fetched.
    """
    base = adapter_base(folder, config)
    try:
        return _require_folder(find_folder(base))
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder}/adapter_config.json: base_model_name_or_path: {error}"
        ) from error


def why_no_model(folder: Path) -> str:
    """Return what a folder of a run is instead of a model, and where the run's models are.

    "" of a folder that no run made.
    """
    if stage := _stage_of(folder):
        return f"is what {stage} left, and it holds no model; {_models_in(folder.parent)}"
    if any(folder.glob(f"*/{RUN_JSON}")):
        return f"is the folder of a whole run, and no model itself; {_models_in(folder)}"
    return ""


def _stage_of(folder: Path) -> str:
    """Return name and kind of the stage that made a folder; "" of another folder."""
    record = read_run(folder)
    return f"stage {record.get('name')} ({record.get('kind')})" if record else ""


def _models_in(run: Path) -> str:
    """Return which folders of a run hold models."""
    models = [
        str(record.parent)
        for record in sorted(run.glob(f"*/{RUN_JSON}"), key=_started)
        if any((record.parent / name).is_file() for name in ("config.json", "adapter_config.json"))
    ]
    return f"models of this run: {', '.join(models)}" if models else "the run has no model yet"


def _started(record: Path) -> str:
    return str(read_run(record.parent).get("started"))


def _require_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; expected a model or an adapter")
    return folder


def from_hub(name: str, *, revision: str | None = None, pickles: bool = False) -> Path:
    """Return the local snapshot of a hub id, fetched if it is missing and HF_HUB_OFFLINE isn't set.

    Pickles are fetched only with `pickles`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]
    if pickles:
        patterns.append("pytorch_model*.bin")
    try:
        return Path(str(snapshot_download(name, revision=revision, allow_patterns=patterns)))
    except (HFValidationError, OSError) as error:
        raise CheckpointError(
            f"{name!r} is neither a folder here nor available from the hub "
            f"({type(error).__name__}); check the name, or fetch it first and give its path"
        ) from error
