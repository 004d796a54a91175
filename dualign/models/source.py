"""Resolve a reference to where a model's files are: base, adapter, tokenizer, revision."""

from dataclasses import dataclass
from pathlib import Path

from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.embedded import embedded_model
from dualign.checkpoints.weights import why_no_model
from dualign.errors import CheckpointError
from dualign.model_ref import ModelRef, adapter_base
from dualign.recipe_file import shipped_names


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """A base, and an adapter on it if one is meant."""

    base: str
    """a folder or a hub id"""
    revision: str | None = None
    """of a hub id"""
    adapter: Path | None = None

    @property
    def folder(self) -> str:
        """Where the model itself lies: the adapter's folder, else the base."""
        return str(self.adapter or self.base)

    @property
    def tokenizer(self) -> str:
        """Where the tokenizer lies: the base, if an adapter was saved without one, as PEFT does."""
        if self.adapter is not None and not (self.adapter / "tokenizer_config.json").is_file():
            return self.base
        return self.folder


def why_untrainable(model_type: str | None) -> str | None:
    """Return why a kind of model can't be trained right; None if nothing is known against it."""
    if model_type == "rwkv":
        return (
            "transformers' RWKV halves its weights in place for evaluation and doubles them for training, and "
            "leaves adapters and saved weights as they are: held-out rows and what is saved would be another model"
        )
    return None


def resolve_model(reference: str | Path, *, revision: str | None = None) -> ModelSource:
    """Find a model folder, an adapter's folder, an embedded model or a hub id.

    Args:
        revision: of a hub id that names none itself.

    Raises:
        CheckpointError: a path that doesn't exist or holds no model, an adapter that names no base,
            or a reference that only merging reads (nf4:, BASE+ADAPTER).
    """
    ref = ModelRef.parse(str(reference), revision=revision)
    if not ref.is_plain:
        raise CheckpointError(
            f"{reference}: only merges, folds and exports read it; expected a model folder, "
            "an adapter's folder, a hub id or stage:NAME"
        )
    path = ref.path
    if path is None:
        return _base(ref)
    if not path.is_dir():
        raise CheckpointError(
            f"{reference}: no such folder; expected a model folder, a hub id or stage:NAME"
            f"{_who_makes(path)}"
        )
    if (path / "adapter_config.json").is_file():
        base = _base(adapter_base(path, read_json(path / "adapter_config.json")))
        return ModelSource(base=base.base, revision=base.revision, adapter=path)
    if not (path / "config.json").is_file():
        what = why_no_model(path) or (
            "holds neither config.json nor adapter_config.json, so it is no model"
        )
        raise CheckpointError(f"{path}: {what}")
    return _base(ref)


def _who_makes(folder: Path) -> str:
    """Return what makes a missing run directory, as words to add, if it is one of a recipe that ships."""
    *_, runs, recipe, _stage = ("", "", *folder.parts)
    is_known = runs == "runs" and recipe in shipped_names()
    return f". `dualign run {recipe}` makes it: run that first, in this folder" if is_known else ""


def _base(ref: ModelRef) -> ModelSource:
    name = str(embedded_model(ref.name)) if ref.kind == "embedded" else ref.name
    return ModelSource(base=name, revision=ref.revision)
