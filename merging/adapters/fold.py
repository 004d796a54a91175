"""An adapter folded into its base: 16-bit, or as QLoRA training saw it.

A QLoRA adapter was trained beside NF4 weights. On the 16-bit ones it meets weights that it never saw; on NF4 and back
it meets those that it was trained on. Which one is nearer to the live model is measured, not believed.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.dtypes import DTYPE_NAMES
from dualign.checkpoints.weights import find_base, find_folder, open_weights
from dualign.errors import CheckpointError
from dualign.merging.adapters.kl_gap import (
    PROMPTS,
    Gap,
    folded_logits,
    gap_between,
    live_logits,
    token_ids,
)
from dualign.merging.config import Dtype, Merge, MergeInput, MergeStage
from dualign.merging.merge import prepare, write
from dualign.merging.provenance import MERGE_JSON
from dualign.rundir import new_folder, read_run, write_json

Base = Literal["16bit", "nf4"]
BASES: tuple[Base, ...] = ("16bit", "nf4")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fold:
    """What is folded into what."""

    adapter: str
    model: str | None = None
    """the base, when it isn't the one that the adapter names"""
    base: Base | None = None
    """None: 16bit, or for an adapter that was trained by QLoRA the one that is nearer to it"""
    dtype: Dtype = "input"
    trained_dtype: str | None = None
    """the type that the base was loaded in for training; None: as run.json says, else as it is stored"""
    measure: bool = True
    """whether both are compared with the live QLoRA model"""
    prompts: tuple[str, ...] = PROMPTS


def fold_adapter(meant: Fold, out: Path, *, force: bool = False) -> dict[str, Any]:
    """Write the folded model to `out`; returns what merge.json says, with `base` and the `gaps` of both bases.

    Raises:
        MergeError: the adapter can't be folded exactly.
        CheckpointError: a file is missing or broken, or `out` is there already.
    """
    folder = find_folder(meant.adapter)
    run = _training_of(folder)
    qlora = run.get("quantization") == "nf4" or meant.base == "nf4"
    dtype = meant.trained_dtype or run.get("dtype") or _stored_dtype(meant)
    if not (qlora and meant.measure):
        base = _without_measuring(meant, qlora)
        with new_folder(out, force=force) as work:
            record = _write(meant, base, dtype, work)
            return _amend(work, record, {"base": base, "trained_dtype": dtype if qlora else None})
    with new_folder(out, force=force) as work:
        records = {base: _write(meant, base, dtype, _room(work, base)) for base in BASES}
        gaps = _measure(meant, folder, dtype, {base: work / base for base in BASES})
        nearest = min(BASES, key=lambda base: gaps[base].kl)
        chosen = meant.base or nearest
        _keep(work, chosen)
        about = {"base": chosen, "trained_dtype": dtype, "recommended": nearest}
        about["gaps"] = {base: asdict(gap) for base, gap in gaps.items()}
        return _amend(work, records[chosen], about)


def _training_of(folder: Path) -> Mapping[str, Any]:
    """The settings of the stage that trained the adapter, if dualign did: its run.json is there or one up."""
    for place in (folder, folder.parent):
        found = read_run(place).get("config")
        if isinstance(found, dict):
            return found
    return {}


def _stored_dtype(meant: Fold) -> str:
    entries = open_weights(_name(meant, "16bit", None)).entries.values()
    return DTYPE_NAMES[max(entries, key=lambda entry: entry.size).dtype]


def _without_measuring(meant: Fold, qlora: bool) -> Base:
    if qlora and meant.base is None:
        raise CheckpointError(
            f"{meant.adapter}: was trained by QLoRA; without measuring, say with --base which weights it is folded "
            "into: nf4 (what it was trained on) or 16bit"
        )
    return meant.base or "16bit"


def _name(meant: Fold, base: Base, dtype: str | None) -> str:
    """The folded model as `open_weights` and a merge's config name it."""
    model = f"{meant.model}+{meant.adapter}" if meant.model else meant.adapter
    return f"nf4-{dtype}:{model}" if base == "nf4" else model


def _merge(meant: Fold, base: Base, dtype: str) -> Merge:
    models = (MergeInput(model=_name(meant, base, dtype)),)
    stage = MergeStage(name="fold", models=models, method="passthrough", dtype=meant.dtype)
    return stage.merge()


def _room(work: Path, base: Base) -> Path:
    (work / base).mkdir()
    return work / base


def _write(meant: Fold, base: Base, dtype: str, work: Path) -> dict[str, Any]:
    return write(prepare(_merge(meant, base, dtype), seed=0), work, seed=0)


def _measure(
    meant: Fold, adapter: Path, dtype: str, folders: Mapping[Base, Path]
) -> dict[Base, Gap]:
    named = read_json(adapter / "adapter_config.json")
    base = find_folder(meant.model) if meant.model else find_base(adapter, named)
    if (base / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{base}: the base is an adapter itself, so there is no live model to measure against; use --no-gap"
        )
    ids = token_ids(folders["16bit"], meant.prompts)
    live = live_logits(base, adapter, ids, dtype=dtype)
    return {
        one: gap_between(live, folded_logits(folder, ids, dtype=dtype))
        for one, folder in folders.items()
    }


def _keep(work: Path, chosen: Base) -> None:
    for file in (work / chosen).iterdir():
        file.rename(work / file.name)
    for base in BASES:
        shutil.rmtree(work / base)


def _amend(work: Path, record: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """merge.json with what is known of the fold."""
    written = json.loads((work / MERGE_JSON).read_text(encoding="utf-8"))
    write_json(work / MERGE_JSON, {**written, "fold": dict(about)})
    return {**record, "fold": dict(about)}


def read_prompts(file: Path) -> tuple[str, ...]:
    """The prompts of a text file, one on each line."""
    try:
        found = tuple(filter(None, map(str.strip, file.read_text(encoding="utf-8").splitlines())))
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}") from None
    if not found:
        raise CheckpointError(f"{file}: expected a prompt on each line, found none")
    return found


def summary(gaps: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    """The gaps as a table."""
    lines = [f"{'base':8}{'KL, nats/token':>16}{'RMS logit':>12}{'largest':>10}"]
    lines += [
        f"{base:8}{gap['kl']:16.3e}{gap['rms']:12.4f}{gap['largest']:10.3f}"
        for base, gap in gaps.items()
    ]
    return lines
